"""Engine tgi: arguments and probes of Text Generation Inference, which was archived in March 2026.

https://huggingface.co/docs/text-generation-inference
"""

from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import ENGINE_PORT, GUARDED_PORT

from hone_operator.engines.artifact_links import adapter_path, loading, model_path
from hone_operator.engines.probes import HEALTH
from hone_operator.engines.resolve import Resolved
from hone_operator.engines.shutdown import SLEEP
from hone_operator.objects.resources import Object

NAME = "tgi"
COMMAND = ["text-generation-launcher"]
KEY_VARIABLE: str | None = "API_KEY"
CLIENT_ROUTES: tuple[str, ...] = ()
CHECK: list[str] | None = None
PROVES = False
TELLS = False
CACHE_SHARE = 1.0
HOT = False


def arguments(spec: InferenceServiceSpec, resolved: Resolved) -> list[str]:
    weights = resolved.weights
    host, port = ("127.0.0.1", GUARDED_PORT) if is_guarded(spec) else ("0.0.0.0", ENGINE_PORT)
    found = ["--model-id", model_path(resolved), "--hostname", host, "--port", str(port)]
    found += loading(weights)
    if spec.max_model_len:
        found += ["--max-total-tokens", str(spec.max_model_len)]
    if spec.resources.gpus > 1:
        found += ["--num-shard", str(spec.resources.gpus)]
    if adapters := resolved.all_adapters:
        found += ["--lora-adapters", ",".join(f"{adapter.name}={adapter_path(adapter)}" for adapter in adapters)]
    return found


def is_guarded(spec: InferenceServiceSpec) -> bool:
    """Return whether there is a key: TGI itself compares keys without regard to case, and not on all routes."""
    return spec.api_key_secret is not None


def started(spec: InferenceServiceSpec, resolved: Resolved) -> Object:
    return HEALTH


def pre_stop(spec: InferenceServiceSpec, resolved: Resolved) -> Object | None:
    return SLEEP


def environment(spec: InferenceServiceSpec, resolved: Resolved) -> dict[str, str]:
    # The image sets this variable, which overrides HF_HOME, to a folder that is not writable here.
    return {"HUGGINGFACE_HUB_CACHE": f"{resolved.env['HF_HOME']}/hub"} if "HF_HOME" in resolved.env else {}


def largest_rank(spec: InferenceServiceSpec, resolved: Resolved) -> int | None:
    return None
