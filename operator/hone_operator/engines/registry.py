"""The registry of inference engines. Each engine is a module with the names of `Engine`.

To add an engine, write such a module and add it to `_ENGINES`.
"""

from typing import Protocol

from hone_api.inferenceservices.spec import InferenceServiceSpec

from hone_operator.engines import embedded, sglang, tgi, vllm
from hone_operator.engines.resolve import Resolved
from hone_operator.objects.resources import Object


class Engine(Protocol):
    """The names that the module of an engine defines."""

    NAME: str
    COMMAND: list[str]
    # The environment variable that makes the engine check a key itself. It is removed where Hone checks the key.
    KEY_VARIABLE: str | None
    # The paths that a guard forwards to the engine. A path that ends with / stands for all paths below it. Empty: all.
    CLIENT_ROUTES: tuple[str, ...]
    # The command that checks the engine's arguments before it loads weights, where Hone's modules are in its pod.
    CHECK: list[str] | None
    # Whether the engine checks digests and reads artifacts without help.
    PROVES: bool
    # Whether its /v1/models shows the digest of each model.
    TELLS: bool

    # On CPUs, the share of the memory left by the weights that its KV cache may take.
    CACHE_SHARE: float

    # Whether the engine loads and unloads adapters while it runs, on request of the keeper next to it.
    HOT: bool

    def arguments(self, spec: InferenceServiceSpec, resolved: Resolved) -> list[str]:
        """Return the arguments for the served models; `spec.extraArgs` follow them."""
        ...

    def is_guarded(self, spec: InferenceServiceSpec) -> bool:
        """Return whether a sidecar receives the requests, checks the key, and hides the routes for administrators."""
        ...

    def started(self, spec: InferenceServiceSpec, resolved: Resolved) -> Object:
        """Return the probe that succeeds once the engine's model has answered."""
        ...

    def pre_stop(self, spec: InferenceServiceSpec, resolved: Resolved) -> Object | None:
        """Return the preStop hook that delays SIGTERM; None for an engine that still accepts requests after SIGTERM."""
        ...

    def environment(self, spec: InferenceServiceSpec, resolved: Resolved) -> dict[str, str]:
        """Return variables in addition to those that all engines get."""
        ...

    def largest_rank(self, spec: InferenceServiceSpec, resolved: Resolved) -> int | None:
        """Return the largest rank that an adapter may have; None for any rank."""
        ...


_ENGINES: dict[str, Engine] = {engine.NAME: engine for engine in (embedded, vllm, sglang, tgi)}


def engine_of(spec: InferenceServiceSpec) -> Engine:
    """Return the engine that the spec asks for. `auto`: vllm with GPUs, else embedded."""
    chosen = spec.engine
    if chosen == "auto":
        chosen = "vllm" if spec.resources.gpus > 0 else "embedded"
    return _ENGINES[chosen]
