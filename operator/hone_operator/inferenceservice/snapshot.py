"""The snapshot of an InferenceService from which a pass plans: its children, its pods, and their answers.

snapshots/inferenceservice.py fills it; the plan functions of this package only read it.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hone_api.inferenceservices.spec import InferenceService
from hone_api.reasons import HoneError

from hone_operator.diagnosis.autoscalers import ScalingReport
from hone_operator.diagnosis.nodes import ClusterNodes
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import Images
from hone_operator.reconcile.sync_failures import SyncFailure


@dataclass
class ObservedInferenceService:
    """An InferenceService, its children, and the FineTuneJobs it names.

    `answers`: the answers of sidecars, or of engines without one, by pod uid. `last_answer_at`: when each last
    answered, or when polling began. `leaving_claims`: claims that the engines still mount, that nothing needs, and that
    are being deleted. `cordoned_nodes`: the cordoned nodes; None where listing nodes is forbidden.
    `upgrading_deployments`: Deployments of other services whose roll-out an upgrade began, and that has not ended.
    """

    owner: Object
    spec: InferenceService | HoneError
    images: Images
    deployment: Object | None = None
    service: Object | None = None
    adapters_config_map: Object | None = None
    budget: Object | None = None
    autoscaler: Object | None = None
    claims: list[Object] = field(default_factory=list)
    leaving_claims: list[str] = field(default_factory=list)
    pods: list[Object] = field(default_factory=list)
    jobs: dict[str, Object | None] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    last_answer_at: dict[str, datetime] = field(default_factory=dict)
    cluster: ClusterNodes | None = None
    cordoned_nodes: frozenset[str] | None = None
    gpu: tuple[str, int] | None = None
    warning: str | None = None
    scaling: ScalingReport | None = None
    sync_failures: list[SyncFailure] = field(default_factory=list)
    upgrading_deployments: list[Object] = field(default_factory=list)

    @property
    def children(self) -> list[Object]:
        """The existing children, and other objects with their names."""
        known = (self.deployment, self.service, self.adapters_config_map, self.budget, self.autoscaler)
        return [child for child in known if child is not None]

    @property
    def changeable(self) -> list[Object]:
        """The objects that the plan's actions may change."""
        return [*self.children, *self.pods]
