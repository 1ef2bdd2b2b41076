"""Engine sglang: arguments, probes and guard of SGLang (https://docs.sglang.io)."""

from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import GUARDED_PORT

from hone_operator.engines.artifact_links import (
    build_parser_arguments,
    build_weight_arguments,
    find_largest_rank,
    get_adapter_path,
    get_model_path,
    read_extra_argument,
)
from hone_operator.engines.engine import Engine
from hone_operator.engines.resolve import ResolvedModels
from hone_operator.objects.resources import Object

# Images of it have folders of root in PATH. torch looks there for nvcc, and a folder that is closed to another user
# ends the engine, where one without nvcc would not: https://github.com/pytorch/pytorch/issues/167839
START_WITHOUT_CLOSED_PATHS = (
    "import os, sys; "
    "os.environ['PATH'] = ':'.join(p for p in os.environ.get('PATH', os.defpath).split(':') if os.access(p, os.X_OK)); "
    "os.execvp('python3', ['python3', '-m', 'sglang.launch_server', *sys.argv[1:]])"
)
MAX_LORAS_PER_BATCH = 8
HEALTH_SCRIPT = (
    "import urllib.request as r; "
    f"r.build_opener(r.ProxyHandler({{}})).open('http://127.0.0.1:{GUARDED_PORT}/health_generate')"
)


class SglangEngine(Engine):
    """SGLang. A guard stands in front of it; it listens only inside its pod."""

    name = "sglang"
    command = ("python3", "-c", START_WITHOUT_CLOSED_PATHS)
    # All others change the engine, or report how it was started; a route that a new version adds is not forwarded.
    client_routes = (
        "/",
        "/v1/",
        "/api/",
        *("/health", "/health_generate", "/metrics", "/ping"),
        *("/generate", "/encode", "/classify", "/invocations", "/vertex_generate"),
        *("/model_info", "/get_model_info", "/parse_function_call", "/separate_reasoning"),
    )

    def build_arguments(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> list[str]:
        """Return the arguments of sglang.launch_server."""
        weights = resolved.weights
        found = ["--model-path", get_model_path(resolved), "--served-model-name", weights.name]
        found += ["--host", "127.0.0.1", "--port", str(GUARDED_PORT), "--enable-metrics"]
        found += build_weight_arguments(weights)
        if resolved.model_adapter and resolved.model_adapter.has_own_template:
            found += ["--tokenizer-path", get_adapter_path(resolved.model_adapter)]
        if spec.max_model_len:
            found += ["--context-length", str(spec.max_model_len)]
        found += build_parser_arguments(spec)
        if spec.resources.gpus > 1:
            found += ["--tp-size", str(spec.resources.gpus)]
        if adapters := resolved.all_adapters:
            per_batch, rank = min(len(adapters), MAX_LORAS_PER_BATCH), find_largest_rank(resolved)
            found += ["--enable-lora", "--max-loras-per-batch", str(per_batch), "--max-lora-rank", str(rank)]
            found += ["--lora-paths", *(f"{adapter.name}={get_adapter_path(adapter)}" for adapter in adapters)]
        return found

    def is_guarded(self, spec: InferenceServiceSpec) -> bool:
        """Return True: without a key its admin routes are open, and with one it reports the key to clients."""
        return True

    def build_startup_probe(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> Object:
        """Return a probe that asks the engine inside its pod: the kubelet reaches only the guard."""
        return {"exec": {"command": ["python3", "-c", HEALTH_SCRIPT]}}

    def get_max_lora_rank(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> int | None:
        """Return the user's --max-lora-rank, or the rank that the arguments above set."""
        return read_extra_argument(spec, "--max-lora-rank") or find_largest_rank(resolved)
