"""What the installation gives pods so that they can use their GPUs, and whether they may do without.

jobs.py and inferenceservice/children.py put it into the pods that ask for GPUs; in these, hone_api.gpucheck reads the
variables.
"""

from dataclasses import dataclass

from hone_api.gpucheck import REQUIRED, RESOURCE
from hone_api.pods.pod_options import ComputeResources


@dataclass(frozen=True)
class GpuAccess:
    """`groups` are further group ids, such as that of the nodes' render group.

    `are_required`: a pod that can't use its GPUs fails. Otherwise it computes on the CPU, which is for clusters whose
    GPUs are not real.
    """

    groups: tuple[int, ...] = ()
    are_required: bool = True

    def environment(self, resources: ComputeResources, gpus: int) -> dict[str, str]:
        """Return the variables of a container that asks for so many GPUs."""
        if not gpus or not self.are_required:
            return {}
        return {REQUIRED: str(gpus), RESOURCE: resources.gpu_resource}

    def groups_for(self, gpus: int) -> tuple[int, ...]:
        """Return the further groups of a pod that asks for so many GPUs."""
        return self.groups if gpus else ()
