"""The interface between Hone and an inference engine, with the defaults that most engines share.

Out: what children.py puts into the engine's pod. A new engine is a subclass that sets what differs, and a line in
registry.py.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from hone_api.inferenceservices.spec import InferenceServiceSpec

from hone_operator.engines.probes import HEALTH_PROBE
from hone_operator.engines.resolve import ResolvedModels
from hone_operator.engines.shutdown import SLEEP_HOOK
from hone_operator.objects.resources import Object


class Engine(ABC):
    """An inference engine. The defaults: its artifacts are verified for it, and it serves adapters from its start."""

    name: ClassVar[str]
    command: ClassVar[tuple[str, ...]]
    # The environment variable that makes the engine check a key itself. It is removed where Hone checks the key.
    api_key_env: ClassVar[str | None] = None
    # The paths that a guard forwards to the engine. A path that ends with / stands for all paths below it. Empty: all.
    client_routes: ClassVar[tuple[str, ...]] = ()
    # The command that checks the engine's arguments before it loads weights, where Hone's modules are in its pod.
    check_command: ClassVar[list[str] | None] = None
    # Whether the engine checks digests and reads artifacts without help.
    verifies_artifacts: ClassVar[bool] = False
    # Whether its /v1/models shows the digest of each model.
    reports_digests: ClassVar[bool] = False
    # On CPUs, the share of the memory left by the weights that its KV cache may take.
    cache_share: ClassVar[float] = 1.0
    # Whether the engine loads and unloads adapters while it runs, on request of the sidecar next to it.
    hot_swaps_adapters: ClassVar[bool] = False

    @abstractmethod
    def build_arguments(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> list[str]:
        """Return the arguments for the served models; `spec.extraArgs` follow them."""

    def is_guarded(self, spec: InferenceServiceSpec) -> bool:
        """Return whether a sidecar receives the requests, checks the key, and hides the routes for administrators."""
        return False

    def build_startup_probe(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> Object:
        """Return the probe that succeeds once the engine's model has answered."""
        return HEALTH_PROBE

    def build_pre_stop_hook(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> Object | None:
        """Return the preStop hook that delays SIGTERM; None for an engine that still accepts requests after SIGTERM."""
        return SLEEP_HOOK

    def build_environment(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> dict[str, str]:
        """Return variables in addition to those that all engines get."""
        return {}

    def get_max_lora_rank(self, spec: InferenceServiceSpec, resolved: ResolvedModels) -> int | None:
        """Return the largest rank that an adapter may have; None for any rank."""
        return None
