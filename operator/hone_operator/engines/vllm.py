"""vLLM: https://docs.vllm.ai"""

from hone_api.inferenceservice import InferenceServiceSpec
from hone_api.layout import ADMIN_TOKEN, ENGINE_PORT, POD_SERVED

from hone_operator.draining import DRAIN_SECONDS, SLEEP, finishing_seconds
from hone_operator.engines.placing import adapter_path, given, is_placed, loading, model_path, rank
from hone_operator.engines.probing import HEALTH
from hone_operator.resolve import Resolved
from hone_operator.resources import Object

NAME = "vllm"
COMMAND = ["vllm", "serve"]
KEY_VARIABLE: str | None = "VLLM_API_KEY"
ADMIN_VARIABLE: str | None = None
PROVES = False
TELLS = True
# Both as vLLM 0.32 has them: `supported_quantization` of its platform for ROCm, and its models without
# `embedding_modules`, of the architectures that are trained most.
QUANTIZATIONS: frozenset[str] | None = frozenset(
    "auto_awq auto_gptq awq awq_marlin compressed-tensors deepseek_v4_fp8 fbgemm_fp8 fp8 fp8_per_block fp8_per_channel "
    "fp8_per_tensor gpt_oss_mxfp4 gptq inc modelopt modelopt_fp4 modelopt_mixed modelopt_mxfp8 mxfp4 mxfp8 online "
    "quark torchao".split()
)
LINEAR_ONLY = frozenset(
    "DeepseekV2ForCausalLM DeepseekV3ForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma4ForCausalLM "
    "GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM GptOssForCausalLM MistralForCausalLM OPTForCausalLM "
    "OlmoeForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3NextForCausalLM".split()
)
CACHE_SHARE = 1.0
HOT = True

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank takes (and 1)."""
SMALLEST_RANK = 64
"""As the two below, so coarse that the engines rarely start anew for another adapter."""
LORAS_IN_A_BATCH = (4, 8)
"""More adapters take turns: each has its place in the device's memory."""
LORAS_ON_THE_HOST = 32


def arguments(spec: InferenceServiceSpec, resolved: Resolved) -> list[str]:
    weights = resolved.weights
    found = [model_path(resolved), "--served-model-name", weights.name, "--port", str(ENGINE_PORT)]
    found += ["--shutdown-timeout", str(finishing_seconds(spec))]
    found += loading(weights)
    if resolved.own and resolved.own.own_template:
        found += ["--tokenizer", adapter_path(resolved.own)]
    if spec.max_model_len:
        found += ["--max-model-len", str(spec.max_model_len)]
    if spec.resources.gpus > 1:
        found += ["--tensor-parallel-size", str(spec.resources.gpus)]
    if adapters := resolved.all_adapters:
        at_once = next(number for number in LORAS_IN_A_BATCH if number >= min(len(adapters), LORAS_IN_A_BATCH[-1]))
        found += ["--enable-lora", "--max-loras", str(at_once), "--max-cpu-loras", str(LORAS_ON_THE_HOST)]
        found += ["--max-lora-rank", str(_accepted(rank(resolved)))]
    if is_placed(resolved):
        found += ["--middleware", "hone_gate.Gate"]
    return found


def started(resolved: Resolved) -> Object:
    if not is_placed(resolved):
        return HEALTH
    return {"exec": {"command": ["python3", "-m", "hone_gate", "ask", str(ENGINE_PORT), resolved.weights.name]}}


def pre_stop(resolved: Resolved) -> Object | None:
    if not is_placed(resolved):
        return SLEEP
    return {"exec": {"command": ["python3", "-m", "hone_gate", "drain", str(DRAIN_SECONDS)]}}


def environment(resolved: Resolved) -> dict[str, str]:
    # Its 5 seconds are those of OpenAI's client: a request would meet the connection's end.
    found = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75"}
    if is_placed(resolved):
        found["PYTHONPATH"] = POD_SERVED
    if resolved.all_adapters:
        found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        found["HONE_ADMIN_TOKEN_FILE"] = f"{POD_SERVED}/{ADMIN_TOKEN}"
    return found


def largest_rank(spec: InferenceServiceSpec, resolved: Resolved) -> int | None:
    return given(spec, "--max-lora-rank") or _accepted(rank(resolved))


def _accepted(wanted: int) -> int:
    return next((accepted for accepted in RANKS if accepted >= max(wanted, SMALLEST_RANK)), RANKS[-1])
