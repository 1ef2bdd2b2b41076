"""FineTuneJob: a base model, a dataset, a method; the result is a verified artifact on a PersistentVolumeClaim."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from hone_api.common import (
    API_VERSION,
    DESCRIBED_AT,
    DNS_LABEL_NAME,
    MESSAGE_COLUMN,
    READY_COLUMNS,
    ApiModel,
    CacheOptions,
    SecretKey,
    declare_rules,
    make_rule,
)
from hone_api.finetunejobs.output import OutputOptions
from hone_api.finetunejobs.sources import BaseModelSource, DatasetEntry, DatasetSource
from hone_api.finetunejobs.status import FineTuneJobStatus
from hone_api.finetunejobs.tracking import TrackingOptions
from hone_api.finetunejobs.training import TrainingArguments
from hone_api.pods.pod_options import TRAINER_GRACE_SECONDS, ComputeResources, PodOptions


class LoraOptions(ApiModel):
    """PEFT's LoraConfig, camelCased: https://huggingface.co/docs/peft/package_reference/lora"""

    r: Annotated[int, Field(ge=1, le=4096)] = Field(16, description="Rank.", examples=[64])
    lora_alpha: Annotated[float, Field(gt=0, le=65_536)] = Field(
        32, description="Scale: the update is multiplied by loraAlpha / r.", examples=[16]
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout on the adapter's input.", examples=[0.1]
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases are trained as well.")
    target_modules: (
        Literal["all-linear"]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=255)]], Field(min_length=1, max_length=64)]
    ) = Field(
        "all-linear",
        description="`all-linear` (every linear layer but the output head), or a list of module names.",
        examples=[["q_proj", "v_proj"]],
    )
    use_rslora: bool = Field(False, description="Rank-stabilized LoRA: scale by loraAlpha / sqrt(r).")
    use_dora: bool = Field(
        False,
        description="DoRA: the magnitude of each weight is trained as well. Slower; vLLM serves it merged only.",
        examples=[True],
    )


class EvaluationOptions(ApiModel):
    """Prompts that the base model and the result are asked; the report shows both answers."""

    prompts: list[Annotated[str, Field(min_length=1, max_length=8192)]] = Field(
        min_length=1,
        max_length=50,
        description="Asked before and after training, through the chat template when there is one.",
        examples=[["What is Hone?", "How do I resume a job?"]],
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = Field(
        128, description="Tokens of an answer.", examples=[128]
    )


class CheckpointOptions(ApiModel):
    """When checkpoints are saved, from which an interrupted run resumes."""

    save_steps: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        50, description="Steps between two checkpoints.", examples=[50]
    )
    save_total_limit: Annotated[int, Field(ge=1, le=1000)] = Field(
        2, description="How many of the newest checkpoints to keep.", examples=[2]
    )


class TrainerResources(ComputeResources):
    """What the trainer's pod asks for."""

    gpus: Annotated[int, Field(ge=0, le=16)] = Field(
        1,
        description="GPUs, each with a process of its own that takes perDeviceTrainBatchSize rows a step; 0: train on "
        "the CPU.",
        examples=[1],
    )
    nodes: Annotated[int, Field(ge=1, le=64)] = Field(
        1,
        description="Pods that train together, each on a node of its own choice with `gpus` GPUs. Above 1 their claim "
        "must be ReadWriteMany.",
        examples=[2],
    )


_YEAR_SECONDS = 366 * 24 * 3600
_UNCHANGEABLE = "can't change after creation, since it decides the result: make a new FineTuneJob"


# Of these, a trainer that is started without `hone` or a cluster must be sure as well.
_ONE_OF_DATASET_AND_DATASETS = "set exactly one of dataset (one dataset) and datasets (several)"
_ALL_WEIGHTS = "weight belongs to all of datasets or to none: set it in each of them, or remove it"
# CEL: whether there are rows to evaluate on.
_EVALUATES = (
    "(has(self.dataset) && (has(self.dataset.evalFraction) || has(self.dataset.evalSplit))) || "
    "(has(self.datasets) && self.datasets.exists(one, has(one.evalFraction) || has(one.evalSplit)))"
)


# Fields of a spec that stay in its object: people put credentials into the variables of spec.pod.env, and neither
# training nor the readers of an artifact need to know how the pod ran.
PRIVATE = ("pod",)
# Where a run is tracked changes nothing in its result, so the artifact does not mention it.
UNPUBLISHED = (*PRIVATE, "tracking")


def strip_private(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec on the wire without the fields that are PRIVATE."""
    return {name: value for name, value in spec.items() if name not in PRIVATE}


class FineTuneJobSpec(ApiModel):
    """What to train, on what, and how."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule("has(self.dataset) != has(self.datasets)", _ONE_OF_DATASET_AND_DATASETS),
            make_rule(
                "!has(self.datasets) || self.datasets.all(one, has(one.weight)) || "
                "!self.datasets.exists(one, has(one.weight))",
                _ALL_WEIGHTS,
            ),
            make_rule(
                "!has(self.datasets) || self.datasets.filter(one, has(one.chatTemplate)).size() <= 1",
                "chatTemplate is for all of datasets: set it in one of them",
            ),
            make_rule(
                "self.method != 'full' || !has(self.lora)",
                "lora belongs to methods lora and qlora: remove it, or set method: lora",
            ),
            make_rule(
                "self.method != 'full' || !has(self.output) || !has(self.output.save)",
                "output.save belongs to methods lora and qlora, since method full always saves the full model: "
                "remove it",
            ),
            make_rule(
                "self.method != 'qlora' || !has(self.model.dtype) || self.model.dtype == 'auto'",
                "model.dtype has no effect with method qlora, which loads the weights in 4 bits: remove it",
            ),
            make_rule(
                "self.method != 'qlora' || !has(self.training) || !has(self.training.fp16) || !self.training.fp16",
                "training.fp16 does not go with method qlora, whose adapters are bfloat16: remove it",
            ),
            make_rule(
                f"!has(self.training) || !has(self.training.evalSteps) || {_EVALUATES}",
                "training.evalSteps needs rows to evaluate on: set dataset.evalFraction or evalSplit, or remove it",
            ),
            make_rule(
                "!has(self.training) || !has(self.training.lrSchedulerType) || "
                f"self.training.lrSchedulerType != 'reduce_lr_on_plateau' || {_EVALUATES}",
                "training.lrSchedulerType reduce_lr_on_plateau follows the evaluation loss: set dataset.evalFraction "
                "or evalSplit, or take another schedule",
            ),
            make_rule(
                "!has(self.training) || !has(self.training.parallelism) || self.training.parallelism != 'fsdp' || "
                "(has(self.resources) && ((has(self.resources.gpus) && self.resources.gpus > 1) || "
                "(has(self.resources.nodes) && self.resources.nodes > 1)))",
                "training.parallelism fsdp splits the model among several GPUs: set resources.gpus or nodes to 2 or "
                "more, or remove it",
            ),
            make_rule(
                "self.method != 'qlora' || !has(self.training) || !has(self.training.parallelism) || "
                "self.training.parallelism != 'fsdp'",
                "training.parallelism fsdp does not go with method qlora, whose weights in 4 bits can't be split: "
                "remove it, or set method: lora",
            ),
            make_rule(
                "!has(self.resources) || !has(self.resources.nodes) || self.resources.nodes == 1 || "
                "(has(self.output) && (has(self.output.claim) || (has(self.output.storage) && "
                "has(self.output.storage.accessModes) && 'ReadWriteMany' in self.output.storage.accessModes)))",
                "resources.nodes above 1 needs a claim that several nodes can mount: set output.storage.accessModes "
                "to [ReadWriteMany], or output.claim",
            ),
            make_rule(
                "!has(self.resources) || !has(self.resources.nodes) || self.resources.nodes == 1 || "
                "!has(self.resources.gpus) || self.resources.gpus > 0",
                "resources.nodes above 1 is for GPUs: set resources.gpus to 1 or more",
            ),
            make_rule(
                "!has(self.pod) || !has(self.pod.terminationGracePeriodSeconds) || "
                "self.pod.terminationGracePeriodSeconds >= "
                f"(self.method == 'full' ? {TRAINER_GRACE_SECONDS['full']} : {TRAINER_GRACE_SECONDS['lora']})",
                "pod.terminationGracePeriodSeconds is too short to save a checkpoint: set it to "
                f"{TRAINER_GRACE_SECONDS['lora']} or more, with method full to {TRAINER_GRACE_SECONDS['full']} or "
                "more, or remove it",
            ),
            make_rule(
                "self.resources.gpus == oldSelf.resources.gpus && self.resources.nodes == oldSelf.resources.nodes",
                f"resources.gpus and resources.nodes {_UNCHANGEABLE}",
            ),
            make_rule("self.model == oldSelf.model", f"model {_UNCHANGEABLE}"),
            make_rule("self.method == oldSelf.method", f"method {_UNCHANGEABLE}"),
            *(
                make_rule(
                    f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
                    f"{name} {_UNCHANGEABLE}",
                )
                for name in ("dataset", "datasets", "lora", "training", "evaluation")
            ),
            *(
                make_rule(
                    f"has(self.output) && has(self.output.{name}) ? has(oldSelf.output) && "
                    f"has(oldSelf.output.{name}) && self.output.{name} == oldSelf.output.{name} : "
                    f"!(has(oldSelf.output) && has(oldSelf.output.{name}))",
                    f"output.{name} {_UNCHANGEABLE}",
                )
                for name in ("save", "claim", "storage")
            ),
        )
    )

    model: BaseModelSource = Field(description="The base model.")
    dataset: DatasetSource | None = Field(None, description="The dataset.")
    datasets: Annotated[list[DatasetEntry], Field(min_length=1, max_length=16)] | None = Field(
        None,
        description="Several datasets in place of one: concatenated, or with weights interleaved.",
        examples=[[{"name": "owner/chats", "weight": 3}, {"claim": {"name": "data", "path": "faq"}, "weight": 1}]],
        json_schema_extra={DESCRIBED_AT: "dataset"},
    )
    method: Literal["lora", "qlora", "full"] = Field(
        "lora",
        description="What is trained: lora: an adapter; qlora: an adapter on the base in 4 bits, which needs a "
        "quarter of the memory for the base's weights; full: all weights.",
        examples=["qlora"],
    )
    lora: LoraOptions | None = Field(None, description="The adapter, for methods lora and qlora.")
    training: TrainingArguments = Field(
        TrainingArguments(),
        description="The fields of TRL's SFTConfig, camelCased. What is left out has TRL's default.",
    )
    checkpoint: CheckpointOptions = Field(CheckpointOptions(), description="When checkpoints are saved.")
    evaluation: EvaluationOptions | None = Field(None, description="Prompts that are asked before and after training.")
    output: OutputOptions = Field(OutputOptions(), description="Where the artifact goes, and in what form.")
    resources: TrainerResources = Field(TrainerResources(), description="What the trainer's pod asks for.")
    cache: CacheOptions | None = Field(None, description="Where downloads are kept; left out: on the output claim.")
    token_secret: SecretKey | None = Field(None, description="The hub token, for gated and private repositories.")
    tracking: TrackingOptions | None = Field(
        None,
        description="Experiment trackers that get the curves. They never stop or slow training.",
        examples=[{"mlflow": {"uri": "http://mlflow.tracking.svc:5000", "experiment": "faq-bot"}}],
    )
    pod: PodOptions = Field(PodOptions(), description="Further settings of the trainer's pod.")
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = Field(
        3, description="How often a failed trainer is restarted. Interruptions and the user's mistakes don't count."
    )
    suspend: bool = Field(
        False,
        description="Stop the trainer, which saves a checkpoint first, and free its GPUs; false: continue there.",
        examples=[True],
    )
    active_deadline_seconds: Annotated[int, Field(ge=1, le=_YEAR_SECONDS)] | None = Field(
        None,
        description="Seconds that the Job may be active, as in a Job's spec; after a suspension the count restarts.",
        examples=[86400],
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=_YEAR_SECONDS)] | None = Field(
        None,
        description="Seconds after the end when Jobs and pods, with their logs, are removed; left out: never. The "
        "claim is never removed.",
        examples=[604800],
    )

    @model_validator(mode="after")
    def _has_datasets(self) -> Self:
        if (self.dataset is None) == (self.datasets is None):
            raise ValueError(_ONE_OF_DATASET_AND_DATASETS)
        if len(self.dataset_weights or self.dataset_sources) < len(self.dataset_sources):
            raise ValueError(_ALL_WEIGHTS)
        return self

    @property
    def dataset_sources(self) -> list[DatasetSource]:
        """The datasets, in the order in which their rows come."""
        return [self.dataset] if self.dataset else [*(self.datasets or [])]

    @property
    def dataset_weights(self) -> list[float] | None:
        """The weight of each dataset; None: they are concatenated."""
        weights = [entry.weight for entry in self.datasets or [] if entry.weight is not None]
        return weights or None

    @property
    def chat_template(self) -> str | None:
        """The chat template in place of the tokenizer's."""
        return next((source.chat_template for source in self.dataset_sources if source.chat_template), None)

    @property
    def has_evaluation(self) -> bool:
        """Return whether there are rows to evaluate on."""
        return any(source.has_evaluation for source in self.dataset_sources)

    def drop_unpublished(self) -> dict[str, Any]:
        """Return the spec on the wire without the UNPUBLISHED fields and without the destinations of pushes."""
        wire = {name: value for name, value in self.to_wire().items() if name not in UNPUBLISHED}
        del wire["output"]["push"]
        return wire


class FineTuneJob(ApiModel):
    """A fine-tuning run of a large language model: a base model, a dataset, a method."""

    model_config = ConfigDict(json_schema_extra=declare_rules(DNS_LABEL_NAME))

    PLURAL: ClassVar = "finetunejobs"
    SHORT_NAMES: ClassVar = ["ftj"]
    PRINTER_COLUMNS: ClassVar = [
        {"name": "Stage", "type": "string", "jsonPath": ".status.stage"},
        *READY_COLUMNS,
        {"name": "Percent", "type": "integer", "jsonPath": ".status.progress.percent"},
        {"name": "Loss", "type": "number", "jsonPath": ".status.progress.loss"},
        {"name": "Left", "type": "integer", "jsonPath": ".status.progress.eta", "description": "Seconds left."},
        {"name": "Restarts", "type": "integer", "jsonPath": ".status.restarts", "priority": 1},
        {"name": "GPU seconds", "type": "integer", "jsonPath": ".status.gpuSeconds", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        MESSAGE_COLUMN,
    ]

    api_version: Literal[API_VERSION]  # type: ignore[valid-type]
    kind: Literal["FineTuneJob"]
    metadata: dict[str, Any]
    spec: FineTuneJobSpec = Field(description="What to train, on what, and how.")
    status: FineTuneJobStatus | None = Field(None, description="What was observed.")

    @property
    def name(self) -> str:
        return str(self.metadata["name"])
