"""The snapshot of a FineTuneJob from which a pass plans: its children, and each Job with its pods.

snapshots/finetunejob.py fills it; the plan functions of this package only read it.
"""

import re
from dataclasses import dataclass, field, replace
from datetime import datetime

from hone_api.artifacts.trainer_reports import ProgressReport
from hone_api.exit_codes import USER_MISTAKES
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import HoneError

from hone_operator.diagnosis import pod_state
from hone_operator.diagnosis.autoscalers import ScalingReport
from hone_operator.diagnosis.nodes import ClusterNodes
from hone_operator.diagnosis.pod_failure import UNCOUNTED_REASONS, PodFailure, explain_pod_failure
from hone_operator.objects import child_names
from hone_operator.objects.resources import Object
from hone_operator.pods import pod_levels
from hone_operator.pods.gpu_access import GpuAccess
from hone_operator.reconcile.sync_failures import SyncFailure

_INDEX_KEY = "batch.kubernetes.io/job-completion-index"
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class JobView:
    """One Job with its pods. `pods` are those of this very Job; `container` is their working container."""

    container: str
    job: Object | None = None
    pods: list[Object] = field(default_factory=list)

    def find_condition(self, *types: str) -> Object | None:
        """Return the Job's first true condition of these types."""
        conditions = ((self.job or {}).get("status") or {}).get("conditions") or []
        return next((c for c in conditions if c["type"] in types and c["status"] == "True"), None)

    @property
    def has_ended(self) -> bool:
        return self.find_condition("Complete", "Failed") is not None

    @property
    def is_suspended(self) -> bool:
        return bool(((self.job or {}).get("spec") or {}).get("suspend"))

    @property
    def active_pods(self) -> list[Object]:
        """Pods that are waiting or running."""
        return [pod for pod in self.pods if pod_state.get_phase(pod) in ("Pending", "Running")]

    @property
    def running_pods(self) -> list[Object]:
        """Active pods whose container runs."""
        return [pod for pod in self.active_pods if self.get_start_time(pod) and not self.get_terminated_state(pod)]

    @property
    def unstarted_pod(self) -> Object | None:
        """The newest active pod whose container has not started."""
        return pod_state.find_newest_pod(pod for pod in self.active_pods if not self.get_start_time(pod))

    @property
    def lead_pod(self) -> Object | None:
        """The running pod of index 0, whose report counts for all."""
        return pod_state.find_newest_pod(pod for pod in self.running_pods if self.get_index(pod) == 0)

    @property
    def success_state(self) -> Object | None:
        """The `terminated` state of a container that succeeded, of index 0 where there is one."""
        done = [pod for pod in self.pods if (self.get_terminated_state(pod) or {}).get("exitCode") == 0]
        return self.get_terminated_state(min(done, key=self.get_index)) if done else None

    @property
    def failures(self) -> list[PodFailure]:
        """Why pods failed, in the order of their ends."""
        found = [failure for pod in self.pods if (failure := explain_pod_failure(pod, self.container))]
        return sorted(found, key=lambda failure: failure.ended_at)

    @property
    def root_cause(self) -> PodFailure | None:
        """The failure that ended the Job. Pods that ended only because of another pod exit as interrupted."""

        def weight(failure: PodFailure) -> tuple[bool, bool]:
            return failure.exit_code in USER_MISTAKES, failure.reason not in UNCOUNTED_REASONS

        return max(reversed(self.failures), key=weight, default=None)

    @property
    def final_end(self) -> str | None:
        """When a pod's end decided the Job, which may not report it yet; "" where the pod has no time of its end."""
        if success := self.success_state:
            return str(success.get("finishedAt") or "")
        failures = self.failures
        return failures[-1].ended_at if failures and failures[-1].exit_code in USER_MISTAKES else None

    @property
    def is_about_to_end(self) -> bool:
        return self.final_end is not None

    def get_index(self, pod: Object) -> int:
        """Return the pod's index: 0 in a Job with one pod at a time, regardless of the pod's labels."""
        is_indexed = self.job is None or (self.job.get("spec") or {}).get("completionMode") == "Indexed"
        return get_pod_index(pod) if is_indexed else 0

    def get_start_time(self, pod: Object) -> str | None:
        return pod_state.get_start_time(pod, self.container)

    def get_terminated_state(self, pod: Object) -> Object | None:
        return pod_state.get_terminated_state(pod, self.container)


@dataclass
class ObservedFineTuneJob:
    """A FineTuneJob with its existing children. `spec` is an error when the object breaks the contract.

    `pods` belong to the present training Job, `prepare_pods` to the preparing one, `push_pods` to the pushing one,
    which is read only once the artifact is complete. `stale_pods` are pods of earlier Jobs that have not ended yet,
    `trainer_pods` all pods that train or trained. `held_since`: since when the operator observes, by pod uid, that a
    trainer has ended and its pod has not. `gpu`: name and bytes of the GPU that may train.
    `queue_message`: the queue's own reason why it holds the Job. `settled_digest`: the digest with which the children
    were last found to be as desired (fingerprints.py).
    """

    owner: Object
    spec: FineTuneJob | HoneError
    image: str
    config_map: Object | None = None
    claim: Object | None = None
    service: Object | None = None
    job: Object | None = None
    prepare_job: Object | None = None
    push_job: Object | None = None
    pods: list[Object] = field(default_factory=list)
    prepare_pods: list[Object] = field(default_factory=list)
    push_pods: list[Object] = field(default_factory=list)
    stale_pods: list[Object] = field(default_factory=list)
    trainer_pods: list[Object] = field(default_factory=list)
    reports: dict[str, ProgressReport] = field(default_factory=dict)
    last_answer_at: dict[str, datetime] = field(default_factory=dict)
    held_since: dict[str, datetime] = field(default_factory=dict)
    cluster: ClusterNodes | None = None
    gpu: tuple[str, int] | None = None
    warning: str | None = None
    scaling: ScalingReport | None = None
    queue_message: str | None = None
    gpu_access: GpuAccess = field(default_factory=GpuAccess)
    pod_level: str = pod_levels.RESTRICTED
    settled_digest: bytes | None = None
    sync_failures: list[SyncFailure] = field(default_factory=list)

    @property
    def training(self) -> JobView:
        return JobView(child_names.TRAINER, self.job, self.pods)

    @property
    def preparing(self) -> JobView:
        return JobView(child_names.PREPARE, self.prepare_job, self.prepare_pods)

    @property
    def pushing(self) -> JobView:
        return JobView(child_names.PUSH, self.push_job, self.push_pods)

    @property
    def children(self) -> list[Object]:
        """The existing children that the object owns."""
        found = (self.job, self.prepare_job, self.push_job, self.config_map, self.service)
        return [child for child in found if child is not None]

    @property
    def changeable(self) -> list[Object]:
        """The objects that the plan's actions may change."""
        return [*self.children, *([self.claim] if self.claim else [])]


def add_created(observed: ObservedFineTuneJob, made: list[Object]) -> ObservedFineTuneJob:
    """Return the snapshot as it is once these children are created."""
    found, name = replace(observed), observed.owner["metadata"]["name"]
    for child in made:
        match child["kind"], child["metadata"]["name"]:
            case "Job", job if job == child_names.make_job_name(name):
                found.job = child
            case "Job", job if job == child_names.make_push_job_name(name):
                found.push_job = child
            case "Job", _:
                found.prepare_job = child
            case "ConfigMap", _:
                found.config_map = child
            case "PersistentVolumeClaim", _:
                found.claim = child
    return found


def get_pod_index(pod: Object) -> int:
    """Return the pod's index in an Indexed Job; 0 where there is one pod at a time, or where no number is set.

    The Job's controller sets it as an annotation and as a label, which anybody who may change pods can edit.
    """
    metadata = pod["metadata"]
    noted = (str((metadata.get(part) or {}).get(_INDEX_KEY, "")) for part in ("annotations", "labels"))
    return next((int(text) for text in noted if _NUMBER.fullmatch(text)), 0)
