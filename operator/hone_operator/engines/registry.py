"""The inference engines. Each is a module of one shape: another one is a file, and a line here."""

from typing import Protocol

from hone_api.inferenceservices.spec import InferenceServiceSpec

from hone_operator.engines import embedded, sglang, tgi, vllm
from hone_operator.engines.resolve import Resolved
from hone_operator.objects.resources import Object


class Engine(Protocol):
    """What a module of this package has."""

    NAME: str
    COMMAND: list[str]
    # The environment variable that makes it ask for a key itself: removed where Hone asks; None: there is none.
    KEY_VARIABLE: str | None
    # The paths that a guard forwards to it: one that ends with / stands for all below it. Without any: all.
    CLIENT_ROUTES: tuple[str, ...]
    # The command that lets it judge its arguments before it loads weights, where Hone's modules are in its pod.
    CHECK: list[str] | None
    # Whether it checks digests and finds what lies in an artifact by itself.
    PROVES: bool
    # Whether its /v1/models tells which digest each model has.
    TELLS: bool

    # On CPUs, how much of the memory beside the weights its key-value cache may take.
    CACHE_SHARE: float

    # Whether it loads and unloads adapters while it runs, told by the keeper beside it.
    HOT: bool

    def arguments(self, spec: InferenceServiceSpec, resolved: Resolved) -> list[str]:
        """Arguments for what is served; `spec.extraArgs` follow."""
        ...

    def is_guarded(self, spec: InferenceServiceSpec) -> bool:
        """Whether a sidecar receives its requests: it asks for the key, and hides the routes for administrators."""
        ...

    def started(self, spec: InferenceServiceSpec, resolved: Resolved) -> Object:
        """The probe that succeeds once its model has answered."""
        ...

    def pre_stop(self, spec: InferenceServiceSpec, resolved: Resolved) -> Object | None:
        """What lets it go on taking requests for some time; None: it does so by itself after SIGTERM."""
        ...

    def environment(self, spec: InferenceServiceSpec, resolved: Resolved) -> dict[str, str]:
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
