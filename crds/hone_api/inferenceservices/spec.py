"""InferenceService: a model, and adapters on it, behind an OpenAI-compatible API in the cluster."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from hone_api.common import (
    API_VERSION,
    DNS_LABEL_NAME,
    MESSAGE_COLUMN,
    READY_COLUMNS,
    ApiModel,
    CacheOptions,
    ClaimPath,
    Conditions,
    HubName,
    ObjectName,
    Revision,
    SecretKey,
    declare_list_key,
    declare_rules,
    make_rule,
    make_text_field,
    require_exactly_one,
)
from hone_api.layout import EMBEDDED_TOOL_PARSERS
from hone_api.pods.pod_options import ENGINE_LEAST_GRACE_SECONDS, ComputeResources, PodOptions
from hone_api.remote.sources import REMOTE_RULES, RemoteSource

ArtifactDigest = Annotated[
    str, make_text_field(r"^sha256:[0-9a-f]{64}$", "must be sha256: and 64 hexadecimal digits", max_length=71)
]
_DIGEST_RULE = make_rule("has(self.uri) || !has(self.digest)", "digest belongs to uri: set uri, or remove it")


class FineTuneJobReference(ApiModel):
    """A FineTuneJob in the object's own namespace."""

    name: ObjectName = Field(description="Name of the FineTuneJob.", examples=["llama2-guanaco"])


class ArtifactUri(RemoteSource):
    """A model or adapter that is downloaded from a URI before the engine starts."""

    digest: ArtifactDigest | None = Field(
        None,
        description="Digest that the downloaded artifact of Hone must have in its manifest.json; left out: any.",
    )


class ServedModel(ArtifactUri):
    """What is served: exactly one of `fineTuneJob`, `name`, `claim` and `uri`."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                require_exactly_one("fineTuneJob", "name", "claim", "uri"),
                "set exactly one of fineTuneJob, name (a model on the hub), claim and uri",
            ),
            make_rule(
                "has(self.name) || !has(self.revision)",
                "revision belongs to a model on the hub: set name, or remove it",
            ),
            *REMOTE_RULES,
            _DIGEST_RULE,
        )
    )

    fine_tune_job: FineTuneJobReference | None = Field(
        None, description="The result of a FineTuneJob: its base with the adapter, its merged model, or its full model."
    )
    name: HubName | None = Field(
        None, description="Name of a model on the hub.", examples=["Qwen/Qwen2.5-0.5B-Instruct"]
    )
    revision: Revision | None = Field(
        None, description="Branch, tag or commit on the hub; left out: main.", examples=["main"]
    )
    claim: ClaimPath | None = Field(
        None, description="Folder on a claim: an artifact of Hone, or a model as transformers saves it."
    )


class AdapterSource(ArtifactUri):
    """An adapter on the served base model: exactly one of `fineTuneJob`, `claim` and `uri`."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                require_exactly_one("fineTuneJob", "claim", "uri"), "set exactly one of fineTuneJob, claim and uri"
            ),
            *REMOTE_RULES,
            _DIGEST_RULE,
        )
    )

    name: Annotated[
        str,
        make_text_field(
            r"^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$",
            "must be letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
            max_length=63,
        ),
    ] = Field(description="What clients call it, as `model` of a request.", examples=["support"])
    fine_tune_job: FineTuneJobReference | None = Field(None, description="The FineTuneJob whose adapter it is.")
    claim: ClaimPath | None = Field(
        None, description="Folder on a claim: an artifact of Hone, or an adapter as PEFT saves it."
    )


class EngineResources(ComputeResources):
    """What one engine pod asks for."""

    gpus: Annotated[int, Field(ge=0, le=16)] = Field(0, description="GPUs of one engine pod.", examples=[1])


class Autoscaling(ApiModel):
    """The number of engine pods by their load."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule("self.minReplicas <= self.maxReplicas", "minReplicas must not be above maxReplicas"),
        )
    )

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="Fewest engine pods.", examples=[1])
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="Most engine pods.", examples=[4])
    target_concurrency: Annotated[int, Field(ge=1, le=100_000)] = Field(
        description="Requests, running and waiting, that an engine pod should have on average.", examples=[32]
    )


class RolloutStrategy(ApiModel):
    """How engine pods are replaced, as in a Deployment's spec."""

    type: Literal["RollingUpdate", "Recreate"] = Field(
        "RollingUpdate",
        description="RollingUpdate: a new pod answers before an old one ends, which needs the room of one more. "
        "Recreate: all old pods end first, for GPUs that nothing else is left of; the service does not answer until "
        "the new ones do.",
        examples=["Recreate"],
    )


# auto is embedded without GPUs.
_IS_EMBEDDED = (
    "(self.engine == 'embedded' || (self.engine == 'auto' && "
    "(!has(self.resources) || !has(self.resources.gpus) || self.resources.gpus == 0)))"
)
ParserName = Annotated[
    str, make_text_field(r"^[A-Za-z0-9_.-]+$", "must be letters, digits, '-', '_' and '.'", max_length=63)
]
JinjaTemplate = Annotated[str, make_text_field("[{]", "must be a Jinja template, not a path", max_length=65_536)]


class InferenceServiceSpec(ApiModel):
    """What to serve, and with what."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                "!has(self.extraArgs) || !self.extraArgs.exists(a, a.startsWith('--api-key') "
                "|| a.startsWith('--api_key') || a.startsWith('--admin-api') || a.startsWith('--admin_api'))",
                "a key in extraArgs could be read by all who may read the object: set apiKeySecret instead",
            ),
            make_rule(
                "!has(self.extraArgs) || !self.extraArgs.exists(a, a == '--port' || a.startsWith('--port='))",
                "the probes and the Service need the engine's port as it is: remove --port from extraArgs",
            ),
            make_rule(
                "!has(self.extraArgs) || !has(self.engine) || !(self.engine in ['sglang', 'tgi']) || "
                "!self.extraArgs.exists(a, a.startsWith('--host'))",
                "this engine listens where a sidecar that asks for the key forwards to it: remove --host and "
                "--hostname from extraArgs",
            ),
            make_rule(
                "!has(self.pod) || !has(self.pod.terminationGracePeriodSeconds) || "
                f"self.pod.terminationGracePeriodSeconds >= {ENGINE_LEAST_GRACE_SECONDS}",
                "pod.terminationGracePeriodSeconds is too short for an engine to finish its answers: set it to "
                f"{ENGINE_LEAST_GRACE_SECONDS} or more, or remove it",
            ),
            make_rule(
                "!has(self.autoscaling) || self.replicas == 1",
                "autoscaling sets the number of engine pods: remove replicas, or remove autoscaling",
            ),
            make_rule(
                f"!has(self.toolCallParser) || !{_IS_EMBEDDED} || self.toolCallParser in {list(EMBEDDED_TOOL_PARSERS)}",
                f"the embedded engine has the toolCallParser {', '.join(EMBEDDED_TOOL_PARSERS)}: set one of these, "
                "remove it (the chat template then decides), or set engine: vllm",
            ),
            make_rule(
                f"!has(self.reasoningParser) || !{_IS_EMBEDDED}",
                "the embedded engine returns what a model thinks as a part of its text: remove reasoningParser, or set "
                "engine: vllm",
            ),
            make_rule(
                "self.engine != 'tgi' || (!has(self.toolCallParser) && !has(self.reasoningParser))",
                "tgi has one form of tool calls and no reasoning parsers: remove toolCallParser and reasoningParser, "
                "or set engine: vllm",
            ),
            make_rule(
                "!has(self.chatTemplate) || (self.engine != 'sglang' && self.engine != 'tgi')",
                "sglang and tgi take no chat template as a text: remove chatTemplate (with sglang a file of the image "
                "can be named in extraArgs), or set engine: vllm",
            ),
            make_rule(
                "!has(self.tokenSecret) || has(self.model.name)",
                "tokenSecret is for a model that is downloaded from the hub: set model.name, or remove tokenSecret",
            ),
            make_rule(
                "!has(self.cache) || has(self.model.name) || has(self.model.uri) || "
                "(has(self.adapters) && self.adapters.exists(a, has(a.uri)))",
                "cache is for what is downloaded: set model.name, or a uri, or remove cache",
            ),
        )
    )

    model: ServedModel = Field(description="The model.")
    adapters: list[AdapterSource] = Field(
        [],
        max_length=32,
        description="Named adapters on the same base model.",
        json_schema_extra=declare_list_key("name"),
    )
    engine: Literal["auto", "vllm", "sglang", "tgi", "embedded"] = Field(
        "auto",
        description="The inference engine; auto is vllm where resources.gpus is above 0, else embedded: Hone's own, on "
        "transformers' continuous batching.",
    )
    replicas: Annotated[int, Field(ge=0, le=1000)] = Field(1, description="Number of engine pods.", examples=[2])
    autoscaling: Autoscaling | None = Field(
        None, description="The number of engine pods by their load, in place of `replicas`."
    )
    strategy: RolloutStrategy = Field(RolloutStrategy(), description="How engine pods are replaced.")
    max_model_len: Annotated[int, Field(ge=16, le=10_000_000)] | None = Field(
        None,
        description="Most tokens of prompt and answer together; left out: what the model was made for.",
        examples=[4096],
    )
    resources: EngineResources = Field(EngineResources(), description="What one engine pod asks for.")
    cache: CacheOptions | None = Field(
        None,
        description="Where what model.name or a uri names is kept, so that it is downloaded once for all pods and "
        "starts; left out: each pod downloads it again.",
    )
    token_secret: SecretKey | None = Field(
        None,
        description="The hub token, for a gated or private model.name. Only the init container that downloads has it.",
    )
    api_key_secret: SecretKey | None = Field(
        None, description="The key that clients must send, as `Authorization: Bearer`; left out: none is asked for."
    )
    tool_call_parser: ParserName | None = Field(
        None,
        description="How the model writes tool calls: with vllm and sglang the name of a parser of theirs, without "
        "which they find no calls in answers to tool_choice auto; with embedded one of "
        f"{', '.join(EMBEDDED_TOOL_PARSERS)}, in place of the format in its chat template.",
        examples=["hermes"],
    )
    reasoning_parser: ParserName | None = Field(
        None,
        description="How the model marks what it thinks before its answer, which clients then get in a field of its "
        "own: the name of a parser of vllm or sglang.",
        examples=["qwen3"],
    )
    chat_template: JinjaTemplate | None = Field(
        None,
        description="A chat template in Jinja, for all models of the service, in place of their own; for vllm and "
        "embedded.",
        examples=["{% for message in messages %}...{% endfor %}"],
    )
    extra_args: list[Annotated[str, Field(max_length=4096)]] = Field(
        [],
        max_length=100,
        description="Further arguments of the engine, after Hone's: where one is given twice, these win.",
        examples=[["--gpu-memory-utilization=0.95"]],
    )
    pod: PodOptions = Field(PodOptions(), description="Further settings of the engine pods.")


class ModelStatus(ApiModel):
    """A model in the service's list."""

    name: str = Field(description="What clients call it.")
    kind: Literal["base", "adapter", "merged", "model"] = Field(description="What it is.")
    digest: str | None = Field(None, description="Digest of the artifact, where it is one of Hone's.")
    loaded: str | None = Field(
        None,
        description="On how many of the pods it is loaded, by their own lists; left out where these don't show it.",
        examples=["2/2"],
    )


class InferenceServiceStatus(ApiModel):
    """What was observed."""

    url: str | None = Field(None, description="Base URL for OpenAI clients inside the cluster.")
    models: list[ModelStatus] = Field([], max_length=64, description="The models that the service lists.")
    model_names: str | None = Field(
        None, description="The names alone, comma-separated: a column of `kubectl get` shows one value of a list."
    )
    conditions: Conditions = Field(
        [],
        description="Accepted, ArtifactsResolved, Progressing, Available; above one replica Spreadable; with "
        "autoscaling ScalingActive; for tools Ready, Reconciling and Stalled, as kstatus defines them.",
    )
    replicas: int | None = Field(None, description="Engine pods there are.")
    ready_replicas: int | None = Field(None, description="Engine pods that answer.")
    selector: str | None = Field(None, description="Label selector of the engine pods, for the scale subresource.")
    observed_generation: int | None = Field(None, description="The metadata.generation that this status speaks of.")


class InferenceService(ApiModel):
    """A model and its adapters behind an OpenAI-compatible API inside the cluster."""

    model_config = ConfigDict(json_schema_extra=declare_rules(DNS_LABEL_NAME))

    PLURAL: ClassVar = "inferenceservices"
    SHORT_NAMES: ClassVar = ["hisvc"]
    PRINTER_COLUMNS: ClassVar = [
        {"name": "URL", "type": "string", "jsonPath": ".status.url"},
        *READY_COLUMNS,
        {"name": "Engines", "type": "integer", "jsonPath": ".status.readyReplicas"},
        {"name": "Models", "type": "string", "jsonPath": ".status.modelNames"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        MESSAGE_COLUMN,
    ]

    api_version: Literal[API_VERSION]  # type: ignore[valid-type]
    kind: Literal["InferenceService"]
    metadata: dict[str, Any]
    spec: InferenceServiceSpec = Field(description="What to serve, and with what.")
    status: InferenceServiceStatus | None = Field(None, description="What was observed.")

    @property
    def name(self) -> str:
        return str(self.metadata["name"])
