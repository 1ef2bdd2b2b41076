"""Engine sglang: arguments, probes and guard of SGLang (https://docs.sglang.io)."""

from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import GUARDED_PORT

from hone_operator.engines.artifact_links import adapter_path, given, loading, model_path, parsing, rank
from hone_operator.engines.resolve import Resolved
from hone_operator.engines.shutdown import SLEEP
from hone_operator.objects.resources import Object

NAME = "sglang"
# Images of it have folders of root in PATH. torch looks there for nvcc, and a folder that is closed to another user
# ends the engine, where one without nvcc would not: https://github.com/pytorch/pytorch/issues/167839
WITHOUT_CLOSED_PATHS = (
    "import os, sys; "
    "os.environ['PATH'] = ':'.join(p for p in os.environ.get('PATH', os.defpath).split(':') if os.access(p, os.X_OK)); "
    "os.execvp('python3', ['python3', '-m', 'sglang.launch_server', *sys.argv[1:]])"
)
COMMAND = ["python3", "-c", WITHOUT_CLOSED_PATHS]
KEY_VARIABLE: str | None = None
# All others change the engine, or report how it was started; a route that a new version adds is not forwarded.
CLIENT_ROUTES: tuple[str, ...] = (
    "/",
    "/v1/",
    "/api/",
    *("/health", "/health_generate", "/metrics", "/ping"),
    *("/generate", "/encode", "/classify", "/invocations", "/vertex_generate"),
    *("/model_info", "/get_model_info", "/parse_function_call", "/separate_reasoning"),
)
CHECK: list[str] | None = None
PROVES = False
TELLS = False
CACHE_SHARE = 1.0
HOT = False

LORAS_IN_A_BATCH = 8
ASK = (
    "import urllib.request as r; "
    f"r.build_opener(r.ProxyHandler({{}})).open('http://127.0.0.1:{GUARDED_PORT}/health_generate')"
)


def arguments(spec: InferenceServiceSpec, resolved: Resolved) -> list[str]:
    weights = resolved.weights
    found = ["--model-path", model_path(resolved), "--served-model-name", weights.name]
    found += ["--host", "127.0.0.1", "--port", str(GUARDED_PORT), "--enable-metrics"]
    found += loading(weights)
    if resolved.own and resolved.own.own_template:
        found += ["--tokenizer-path", adapter_path(resolved.own)]
    if spec.max_model_len:
        found += ["--context-length", str(spec.max_model_len)]
    found += parsing(spec)
    if spec.resources.gpus > 1:
        found += ["--tp-size", str(spec.resources.gpus)]
    if adapters := resolved.all_adapters:
        at_once = min(len(adapters), LORAS_IN_A_BATCH)
        found += ["--enable-lora", "--max-loras-per-batch", str(at_once), "--max-lora-rank", str(rank(resolved))]
        found += ["--lora-paths", *(f"{adapter.name}={adapter_path(adapter)}" for adapter in adapters)]
    return found


def is_guarded(spec: InferenceServiceSpec) -> bool:
    """Return True: without a key its routes for administrators are open, and with one it reports the key to clients."""
    return True


def started(spec: InferenceServiceSpec, resolved: Resolved) -> Object:
    return {"exec": {"command": ["python3", "-c", ASK]}}


def pre_stop(spec: InferenceServiceSpec, resolved: Resolved) -> Object | None:
    return SLEEP


def environment(spec: InferenceServiceSpec, resolved: Resolved) -> dict[str, str]:
    return {}


def largest_rank(spec: InferenceServiceSpec, resolved: Resolved) -> int | None:
    return given(spec, "--max-lora-rank") or rank(resolved)
