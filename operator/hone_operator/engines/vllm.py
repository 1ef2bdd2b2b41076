"""Engine vllm: arguments, probes and variables of vLLM (https://docs.vllm.ai).

Where artifacts, adapters or a key are used, vLLM imports Hone's modules hone_vllm (checks) and hone_gate (middleware).
"""

from hone_api.containers import VLLM_CHECK, VLLM_MIDDLEWARE, VLLM_MIDDLEWARE_CLASS, build_module_command
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import ADMIN_TOKEN, ADMIN_TOKEN_FILE_ENV, API_KEY_FILE_ENV, ENGINE_PORT, POD_SERVED

from hone_operator.engines.artifact_links import (
    build_parser_arguments,
    build_weight_arguments,
    escape_variables,
    find_largest_rank,
    get_adapter_path,
    get_model_path,
    provides_modules,
    read_extra_argument,
)
from hone_operator.engines.engine import Engine
from hone_operator.engines.probes import HEALTH_PROBE
from hone_operator.engines.resolve import ResolvedModels
from hone_operator.engines.shutdown import DRAIN_SECONDS, SLEEP_HOOK, get_finishing_seconds
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import POD_API_KEY
from hone_operator.pods.tuning import VLLM_CACHE_VARIABLES

# The values that --max-lora-rank accepts, apart from 1.
ACCEPTED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# This and the two limits below are coarse, so that engines rarely restart for another adapter.
MIN_RANK = 64
# The values for --max-loras: each adapter of a batch takes device memory, so more adapters take turns.
LORAS_PER_BATCH = (4, 8)
MAX_CPU_LORAS = 32


class VllmEngine(Engine):
    """vLLM. Its middleware does what a guard does for other engines."""

    name = "vllm"
    command = ("vllm", "serve")
    api_key_env = "VLLM_API_KEY"
    check_command = build_module_command(VLLM_CHECK)
    reports_digests = True
    hot_swaps_adapters = True

    def build_arguments(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> list[str]:
        """Return the arguments of `vllm serve`."""
        weights = resolved.weights
        found = [get_model_path(resolved), "--served-model-name", weights.name, "--port", str(ENGINE_PORT)]
        found += ["--shutdown-timeout", str(get_finishing_seconds(spec))]
        # The default differs by version. Any origin is safe: the key guards the answers, and browsers never send it
        # alone.
        found += ["--allowed-origins", '["*"]']
        found += build_weight_arguments(weights)
        if resolved.model_adapter and resolved.model_adapter.has_own_template:
            found += ["--tokenizer", get_adapter_path(resolved.model_adapter)]
        if spec.max_model_len:
            found += ["--max-model-len", str(spec.max_model_len)]
        found += build_parser_arguments(spec)
        if spec.tool_call_parser:
            found.append("--enable-auto-tool-choice")
        if spec.chat_template:
            found.append(f"--chat-template={escape_variables(spec.chat_template)}")
        if spec.resources.gpus > 1:
            found += ["--tensor-parallel-size", str(spec.resources.gpus)]
        if adapters := resolved.all_adapters:
            per_batch = next(number for number in LORAS_PER_BATCH if number >= min(len(adapters), LORAS_PER_BATCH[-1]))
            found += ["--enable-lora", "--max-loras", str(per_batch), "--max-cpu-loras", str(MAX_CPU_LORAS)]
            found += ["--max-lora-rank", str(_round_up_rank(find_largest_rank(resolved)))]
        if provides_modules(spec, resolved):
            found += ["--middleware", f"{VLLM_MIDDLEWARE}.{VLLM_MIDDLEWARE_CLASS}"]
        return found

    def build_startup_probe(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> Object:
        """Return a probe that asks the model for one token, where Hone's middleware is in the pod."""
        if not provides_modules(spec, resolved):
            return HEALTH_PROBE
        return {
            "exec": {
                "command": [*build_module_command(VLLM_MIDDLEWARE), "ask", str(ENGINE_PORT), resolved.weights.name]
            }
        }

    def build_pre_stop_hook(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> Object | None:
        """Return a hook that waits for the last requests, where Hone's middleware is in the pod."""
        if not provides_modules(spec, resolved):
            return SLEEP_HOOK
        return {"exec": {"command": [*build_module_command(VLLM_MIDDLEWARE), "drain", str(DRAIN_SECONDS)]}}

    def build_environment(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> dict[str, str]:
        """Return the variables of vLLM and of Hone's modules in it."""
        # The default of 5 seconds equals the keep-alive of OpenAI's client, so a request could hit a closing
        # connection.
        found = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75"}
        if spec.resources.gpus:
            found |= VLLM_CACHE_VARIABLES
        if provides_modules(spec, resolved):
            found["PYTHONPATH"] = POD_SERVED
        if spec.api_key_secret:
            found[API_KEY_FILE_ENV] = POD_API_KEY
        if resolved.all_adapters:
            found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
            found[ADMIN_TOKEN_FILE_ENV] = f"{POD_SERVED}/{ADMIN_TOKEN}"
        return found

    def get_max_lora_rank(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> int | None:
        """Return the user's --max-lora-rank, or the rank that the arguments above set."""
        return read_extra_argument(spec, "--max-lora-rank") or _round_up_rank(find_largest_rank(resolved))


def _round_up_rank(rank: int) -> int:
    return next((accepted for accepted in ACCEPTED_RANKS if accepted >= max(rank, MIN_RANK)), ACCEPTED_RANKS[-1])
