"""The installation's settings for pods with GPUs: further groups, and whether a pod may run without its GPUs.

finetunejob/jobs.py and inferenceservice/children.py put them into pods that request GPUs; there hone_api.gpucheck reads
the variables.
"""

from dataclasses import dataclass

from hone_api.gpucheck import REQUIRED, RESOURCE
from hone_api.pods.pod_options import ComputeResources


@dataclass(frozen=True)
class GpuAccess:
    """How pods get access to GPUs. `groups`: further group ids, such as that of the nodes' render group.

    `are_required`: a pod that can't use its GPUs fails. Otherwise it computes on the CPU, for clusters with fake GPUs.
    """

    groups: tuple[int, ...] = ()
    are_required: bool = True

    def build_environment(self, resources: ComputeResources, gpus: int) -> dict[str, str]:
        """Return the variables of a container that requests this number of GPUs."""
        if not gpus or not self.are_required:
            return {}
        return {REQUIRED: str(gpus), RESOURCE: resources.gpu_resource}

    def get_groups(self, gpus: int) -> tuple[int, ...]:
        """Return the further groups of a pod that requests this number of GPUs."""
        return self.groups if gpus else ()
