"""Prepare artifacts for engines that don't know Hone's format.

An init container checks digests, and links models and adapters into one folder with stable names. In: the resolved
models. Out: that container, and arguments that these engines share. It runs hone_server.adapter_sidecar.link_artifacts.
"""

import re

from hone_api.containers import LINK_ARTIFACTS, build_module_command
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import ADAPTER_LINKS, MODEL_LINK, POD_SERVED, make_link_name

from hone_operator.engines.resolve import ModelWeights, ResolvedAdapter, ResolvedModels
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import build_container_security

CONTAINER = "place"
ADAPTERS_FOLDER = f"{POD_SERVED}/{ADAPTER_LINKS}"
# The rank that is assumed for an adapter that no FineTuneJob made.
ASSUMED_RANK = 64


def get_model_path(resolved: ResolvedModels) -> str:
    """Return what the engine loads: the link to a folder, or a name on the hub."""
    weights = resolved.weights
    return f"{POD_SERVED}/{make_link_name(MODEL_LINK, weights.digest)}" if weights.is_folder else weights.source


def provides_modules(spec: InferenceServiceSpec, resolved: ResolvedModels) -> bool:
    """Return whether a container of Hone runs before or next to vLLM, and provides the modules that vLLM imports."""
    return bool(resolved.weights.is_folder or resolved.all_adapters or spec.api_key_secret)


def build_weight_arguments(weights: ModelWeights) -> list[str]:
    """Return the arguments for loading the model, which these engines have in common."""
    found = []
    if weights.revision and not weights.is_folder:
        found += ["--revision", weights.revision]
    if weights.dtype != "auto":
        found += ["--dtype", weights.dtype]
    if weights.trust_remote_code:
        found.append("--trust-remote-code")
    return found


def build_parser_arguments(spec: InferenceServiceSpec) -> list[str]:
    """Return the arguments for parsing answers, which vLLM and SGLang have in common."""
    found = []
    if spec.tool_call_parser:
        found += ["--tool-call-parser", spec.tool_call_parser]
    if spec.reasoning_parser:
        found += ["--reasoning-parser", spec.reasoning_parser]
    return found


def escape_variables(argument: str) -> str:
    """Return an argument with escapes, so that the kubelet does not expand variables in it."""
    return argument.replace("$", "$$")


def get_adapter_path(adapter: ResolvedAdapter) -> str:
    return f"{ADAPTERS_FOLDER}/{make_link_name(adapter.name, adapter.digest)}"


def find_largest_rank(resolved: ResolvedModels) -> int:
    """Return the largest rank of the adapters."""
    ranks = [adapter.lora.r if adapter.lora else ASSUMED_RANK for adapter in resolved.all_adapters]
    return max(ranks, default=ASSUMED_RANK)


def read_extra_argument(spec: InferenceServiceSpec, flag: str) -> int | None:
    """Return the number that spec.extraArgs has for a flag, in either spelling; None without one."""
    joined = " ".join(spec.extra_args)
    values: list[str] = re.findall(rf"(?:^| ){flag}[= ](\d+)(?: |$)", joined)
    return int(values[-1]) if values else None


def build_link_container(
    resolved: ResolvedModels,
    adapters: list[ResolvedAdapter],
    largest_rank: int | None,
    image: str,
    resources: Object,
    mounts: list[Object],
) -> Object:
    """Return the init container. `adapters`: those that no other container checks."""
    weights = resolved.weights
    arguments = ["--into", POD_SERVED]
    if weights.is_folder:
        arguments += ["--model", weights.source]
        if weights.digest:
            arguments += ["--expect-model", weights.digest]
    if adapters and resolved.base_name:
        arguments += ["--base", resolved.base_name]
        if resolved.base_revision:
            arguments += ["--base-revision", resolved.base_revision]
    for adapter in adapters:
        arguments += ["--adapter", f"{adapter.name}={adapter.folder}"]
        if adapter.digest:
            arguments += ["--expect", f"{adapter.name}={adapter.digest}"]
    if adapters and largest_rank:
        arguments += ["--max-rank", str(largest_rank)]
    return {
        "name": CONTAINER,
        "image": image,
        "command": build_module_command(LINK_ARTIFACTS),
        "args": arguments,
        "resources": resources,
        "volumeMounts": mounts,
        "securityContext": build_container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
