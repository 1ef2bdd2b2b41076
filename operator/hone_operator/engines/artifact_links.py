"""Prepare artifacts for engines that don't know Hone's format.

An init container checks digests, and links models and adapters into one folder with stable names. In: the resolved
models. Out: that container, and arguments that these engines share. It runs hone_server.adapter_sidecar.link_artifacts.
"""

import re

from hone_api.containers import LINK_ARTIFACTS, module_command
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import POD_SERVED, link_name

from hone_operator.engines.resolve import Adapter, Resolved, Weights
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import container_security

CONTAINER = "place"
ADAPTERS = f"{POD_SERVED}/adapters"
MODEL = "model"
# The rank that is assumed for an adapter that no FineTuneJob made.
UNKNOWN_RANK = 64


def model_path(resolved: Resolved) -> str:
    """Return what the engine loads: the link to a folder, or a name on the hub."""
    weights = resolved.weights
    return f"{POD_SERVED}/{link_name(MODEL, weights.digest)}" if weights.is_folder else weights.source


def is_placed(spec: InferenceServiceSpec, resolved: Resolved) -> bool:
    """Return whether a container of Hone runs before or next to vLLM, and provides the modules that vLLM imports."""
    return bool(resolved.weights.is_folder or resolved.all_adapters or spec.api_key_secret)


def loading(weights: Weights) -> list[str]:
    """Return the arguments for loading the model, which these engines have in common."""
    found = []
    if weights.revision and not weights.is_folder:
        found += ["--revision", weights.revision]
    if weights.dtype != "auto":
        found += ["--dtype", weights.dtype]
    if weights.trust_remote_code:
        found.append("--trust-remote-code")
    return found


def parsing(spec: InferenceServiceSpec) -> list[str]:
    """Return the arguments for parsing answers, which vLLM and SGLang have in common."""
    found = []
    if spec.tool_call_parser:
        found += ["--tool-call-parser", spec.tool_call_parser]
    if spec.reasoning_parser:
        found += ["--reasoning-parser", spec.reasoning_parser]
    return found


def literal(argument: str) -> str:
    """Return an argument with escapes, so that the kubelet does not expand variables in it."""
    return argument.replace("$", "$$")


def adapter_path(adapter: Adapter) -> str:
    return f"{ADAPTERS}/{link_name(adapter.name, adapter.digest)}"


def rank(resolved: Resolved) -> int:
    """Return the largest rank of the adapters."""
    ranks = [adapter.lora.r if adapter.lora else UNKNOWN_RANK for adapter in resolved.all_adapters]
    return max(ranks, default=UNKNOWN_RANK)


def given(spec: InferenceServiceSpec, flag: str) -> int | None:
    """Return the number that spec.extraArgs has for a flag, in either spelling; None without one."""
    joined = " ".join(spec.extra_args)
    values: list[str] = re.findall(rf"(?:^| ){flag}[= ](\d+)(?: |$)", joined)
    return int(values[-1]) if values else None


def container(
    resolved: Resolved,
    adapters: list[Adapter],
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
    if adapters and resolved.base:
        arguments += ["--base", resolved.base]
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
        "command": module_command(LINK_ARTIFACTS),
        "args": arguments,
        "resources": resources,
        "volumeMounts": mounts,
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
