"""The inference engines. Each is a module of one shape: another one is a file, and a line here."""

from typing import Protocol

from hone_api.inferenceservice import InferenceServiceSpec

from hone_operator.engines import embedded, sglang, tgi, vllm
from hone_operator.resolve import Resolved
from hone_operator.resources import Object


class Engine(Protocol):
    """What a module of this package has."""

    NAME: str
    COMMAND: list[str]
    KEY_VARIABLE: str | None
    """The environment variable that it takes the clients' key from; None: it reads a file."""
    ADMIN_VARIABLE: str | None
    """The environment variable with the key of routes for administrators, for nobody to know; None: it has none."""
    PROVES: bool
    """Whether it checks digests and finds what lies in an artifact by itself."""
    TELLS: bool
    """Whether its /v1/models tells which digest each model has."""

    QUANTIZATIONS: frozenset[str] | None
    """The quant_method of base models that its image takes; None: not known."""
    LINEAR_ONLY: frozenset[str]
    """Architectures of which its image adapts neither the embeddings nor the output head, as far as it is known."""
    CACHE_SHARE: float
    """On CPUs, how much of the memory beside the weights its key-value cache may take."""

    HOT: bool
    """Whether it loads and unloads adapters while it runs, told by the keeper beside it."""

    def arguments(self, spec: InferenceServiceSpec, resolved: Resolved) -> list[str]:
        """Arguments for what is served; `spec.extraArgs` follow."""
        ...

    def started(self, resolved: Resolved) -> Object:
        """The probe that succeeds once its model has answered."""
        ...

    def pre_stop(self, resolved: Resolved) -> Object | None:
        """What lets it go on taking requests for some time; None: it does so by itself after SIGTERM."""
        ...

    def environment(self, resolved: Resolved) -> dict[str, str]:
        """Variables beside those that all engines get."""
        ...

    def largest_rank(self, spec: InferenceServiceSpec, resolved: Resolved) -> int | None:
        """The rank that an adapter may have; None: any."""
        ...


_ENGINES: dict[str, Engine] = {engine.NAME: engine for engine in (embedded, vllm, sglang, tgi)}


def engine_of(spec: InferenceServiceSpec) -> Engine:
    """The engine that is asked for."""
    chosen = spec.engine
    if chosen == "auto":
        chosen = "vllm" if spec.resources.gpus > 0 else "embedded"
    return _ENGINES[chosen]
