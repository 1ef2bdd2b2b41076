"""Engine vllm: arguments, probes and variables of vLLM (https://docs.vllm.ai).

Where artifacts, adapters or a key are used, vLLM imports Hone's modules hone_vllm (checks) and hone_gate (middleware).
"""

from hone_api.containers import VLLM_CHECK, VLLM_MIDDLEWARE, VLLM_MIDDLEWARE_CLASS, module_command
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import ADMIN_TOKEN, ENGINE_PORT, POD_SERVED

from hone_operator.engines.artifact_links import (
    adapter_path,
    given,
    is_placed,
    literal,
    loading,
    model_path,
    parsing,
    rank,
)
from hone_operator.engines.probes import HEALTH
from hone_operator.engines.resolve import Resolved
from hone_operator.engines.shutdown import DRAIN_SECONDS, SLEEP, finishing_seconds
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import POD_API_KEY
from hone_operator.pods.tuning import VLLM_CACHE

NAME = "vllm"
COMMAND = ["vllm", "serve"]
KEY_VARIABLE: str | None = "VLLM_API_KEY"
CLIENT_ROUTES: tuple[str, ...] = ()
CHECK: list[str] | None = module_command(VLLM_CHECK)
PROVES = False
TELLS = True
CACHE_SHARE = 1.0
HOT = True

# The values that --max-lora-rank accepts, apart from 1.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# This and the two limits below are coarse, so that engines rarely restart for another adapter.
SMALLEST_RANK = 64
# The values for --max-loras: each adapter of a batch takes device memory, so more adapters take turns.
LORAS_IN_A_BATCH = (4, 8)
LORAS_ON_THE_HOST = 32


def arguments(spec: InferenceServiceSpec, resolved: Resolved) -> list[str]:
    weights = resolved.weights
    found = [model_path(resolved), "--served-model-name", weights.name, "--port", str(ENGINE_PORT)]
    found += ["--shutdown-timeout", str(finishing_seconds(spec))]
    # The default differs by version. Any origin is safe: the key guards the answers, and browsers never send it alone.
    found += ["--allowed-origins", '["*"]']
    found += loading(weights)
    if resolved.own and resolved.own.own_template:
        found += ["--tokenizer", adapter_path(resolved.own)]
    if spec.max_model_len:
        found += ["--max-model-len", str(spec.max_model_len)]
    found += parsing(spec)
    if spec.tool_call_parser:
        found.append("--enable-auto-tool-choice")
    if spec.chat_template:
        found.append(f"--chat-template={literal(spec.chat_template)}")
    if spec.resources.gpus > 1:
        found += ["--tensor-parallel-size", str(spec.resources.gpus)]
    if adapters := resolved.all_adapters:
        at_once = next(number for number in LORAS_IN_A_BATCH if number >= min(len(adapters), LORAS_IN_A_BATCH[-1]))
        found += ["--enable-lora", "--max-loras", str(at_once), "--max-cpu-loras", str(LORAS_ON_THE_HOST)]
        found += ["--max-lora-rank", str(_accepted(rank(resolved)))]
    if is_placed(spec, resolved):
        found += ["--middleware", f"{VLLM_MIDDLEWARE}.{VLLM_MIDDLEWARE_CLASS}"]
    return found


def is_guarded(spec: InferenceServiceSpec) -> bool:
    """Return False: the engine's middleware does the work of a sidecar."""
    return False


def started(spec: InferenceServiceSpec, resolved: Resolved) -> Object:
    if not is_placed(spec, resolved):
        return HEALTH
    return {"exec": {"command": [*module_command(VLLM_MIDDLEWARE), "ask", str(ENGINE_PORT), resolved.weights.name]}}


def pre_stop(spec: InferenceServiceSpec, resolved: Resolved) -> Object | None:
    if not is_placed(spec, resolved):
        return SLEEP
    return {"exec": {"command": [*module_command(VLLM_MIDDLEWARE), "drain", str(DRAIN_SECONDS)]}}


def environment(spec: InferenceServiceSpec, resolved: Resolved) -> dict[str, str]:
    # The default of 5 seconds equals the keep-alive of OpenAI's client, so a request could hit a closing connection.
    found = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75"}
    if spec.resources.gpus:
        found |= VLLM_CACHE
    if is_placed(spec, resolved):
        found["PYTHONPATH"] = POD_SERVED
    if spec.api_key_secret:
        found["HONE_API_KEY_FILE"] = POD_API_KEY
    if resolved.all_adapters:
        found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        found["HONE_ADMIN_TOKEN_FILE"] = f"{POD_SERVED}/{ADMIN_TOKEN}"
    return found


def largest_rank(spec: InferenceServiceSpec, resolved: Resolved) -> int | None:
    return given(spec, "--max-lora-rank") or _accepted(rank(resolved))


def _accepted(wanted: int) -> int:
    return next((accepted for accepted in RANKS if accepted >= max(wanted, SMALLEST_RANK)), RANKS[-1])
