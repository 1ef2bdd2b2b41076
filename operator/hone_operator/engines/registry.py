"""The registry of inference engines. To add one, write a subclass of Engine and add it to `_ENGINES`."""

from hone_api.inferenceservices.spec import InferenceServiceSpec

from hone_operator.engines.embedded import EmbeddedEngine
from hone_operator.engines.engine import Engine
from hone_operator.engines.sglang import SglangEngine
from hone_operator.engines.tgi import TgiEngine
from hone_operator.engines.vllm import VllmEngine

_ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (EmbeddedEngine(), VllmEngine(), SglangEngine(), TgiEngine())
}


def select_engine(spec: InferenceServiceSpec) -> Engine:
    """Return the engine that the spec asks for. `auto`: vllm with GPUs, else embedded."""
    chosen = spec.engine
    if chosen == "auto":
        chosen = "vllm" if spec.resources.gpus > 0 else "embedded"
    return _ENGINES[chosen]
