"""SGLang: https://docs.sglang.io"""

from hone_api.inferenceservice import InferenceServiceSpec
from hone_api.layout import ENGINE_PORT

from hone_operator.draining import SLEEP
from hone_operator.engines.placing import adapter_path, given, loading, model_path, rank
from hone_operator.engines.probing import get
from hone_operator.resolve import Resolved
from hone_operator.resources import Object

NAME = "sglang"
COMMAND = ["python3", "-m", "sglang.launch_server"]
KEY_VARIABLE: str | None = "SGLANG_API_KEY"
ADMIN_VARIABLE: str | None = "HONE_POD_UID"
PROVES = False
TELLS = False
QUANTIZATIONS: frozenset[str] | None = None
LINEAR_ONLY: frozenset[str] = frozenset()
CACHE_SHARE = 1.0
HOT = False

LORAS_IN_A_BATCH = 8


def arguments(spec: InferenceServiceSpec, resolved: Resolved) -> list[str]:
    weights = resolved.weights
    found = ["--model-path", model_path(resolved), "--served-model-name", weights.name]
    found += ["--host", "0.0.0.0", "--port", str(ENGINE_PORT), "--enable-metrics"]
    found += loading(weights)
    if resolved.own and resolved.own.own_template:
        found += ["--tokenizer-path", adapter_path(resolved.own)]
    if spec.max_model_len:
        found += ["--context-length", str(spec.max_model_len)]
    if spec.resources.gpus > 1:
        found += ["--tp-size", str(spec.resources.gpus)]
    if spec.api_key_secret:
        # It takes the key by an argument alone: the kubelet puts it in, so that no manifest has it.
        found += ["--api-key", f"$({KEY_VARIABLE})"]
    # Else its routes that load adapters, and do more, are open to all clients.
    found += ["--admin-api-key", f"$({ADMIN_VARIABLE})"]
    if adapters := resolved.all_adapters:
        at_once = min(len(adapters), LORAS_IN_A_BATCH)
        found += ["--enable-lora", "--max-loras-per-batch", str(at_once), "--max-lora-rank", str(rank(resolved))]
        found += ["--lora-paths", *(f"{adapter.name}={adapter_path(adapter)}" for adapter in adapters)]
    return found


def started(resolved: Resolved) -> Object:
    return get("/health_generate")


def pre_stop(resolved: Resolved) -> Object | None:
    return SLEEP


def environment(resolved: Resolved) -> dict[str, str]:
    return {}


def largest_rank(spec: InferenceServiceSpec, resolved: Resolved) -> int | None:
    return given(spec, "--max-lora-rank") or rank(resolved)
