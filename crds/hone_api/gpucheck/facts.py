"""Facts about a container's GPUs on which the judgement depends."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# The variable with the number of GPUs without which a pod fails. Without it, or with 0, none is required.
REQUIRED = "HONE_REQUIRED_GPUS"
# The variable with the extended resource that these GPUs are asked for by.
RESOURCE = "HONE_GPU_RESOURCE"

Vendor = Literal["amd", "nvidia"]


@dataclass(frozen=True)
class Problem:
    """Why GPUs can't be used, in one sentence without its full stop, and the remedy."""

    cause: str
    remedy: str


@dataclass(frozen=True)
class DeviceFile:
    """A device file. `error` is the errno of opening it for reading and writing; 0: it can be opened."""

    path: str
    error: int = 0
    mode: int = 0
    owner: int = 0
    group: int = 0


@dataclass(frozen=True)
class Device:
    """A GPU as torch shows it. `error`: why it did not compute; empty: it did."""

    name: str
    architecture: str
    error: str = ""


@dataclass(frozen=True)
class Torch:
    """The torch of the image and what it sees. `hip` and `cuda` are the versions that it is built for.

    `error`: why it could not be initialized. `architectures`: the kinds of GPUs that it has kernels for.
    """

    version: str
    hip: str | None = None
    cuda: str | None = None
    seen: int = 0
    error: str = ""
    devices: tuple[Device, ...] = ()
    architectures: tuple[str, ...] = ()
    has_collectives: bool = True


@dataclass(frozen=True)
class Facts:
    """A container that asks for `wanted` GPUs by `resource`, run by `user` with `groups`.

    `kfd` None: there is no /dev/kfd. `visible`: the variables that hide GPUs. `driver`: the version of the node's
    amdgpu driver, None where the kernel does not report it. `torch` is how the check of torch ended where it did not
    answer, and None before it was asked.
    """

    wanted: int
    resource: str
    user: int
    groups: frozenset[int]
    kfd: DeviceFile | None = None
    render: tuple[DeviceFile, ...] = ()
    driver: str | None = None
    visible: Mapping[str, str] = field(default_factory=dict)
    torch: Torch | str | None = None


def find_vendor(resource: str) -> Vendor | None:
    """Return the vendor of a resource's GPUs, also with Dynamic Resource Allocation; None: its name does not show it.

    Names are such as `amd.com/cpx_nps1` and `deviceclass.resource.kubernetes.io/gpu.amd.com`.
    """
    names: dict[str, Vendor] = {"amd.com": "amd", "nvidia.com": "nvidia"}
    found = re.search(r"(?:^|[./])(amd\.com|nvidia\.com)(?:/|$)", resource)
    return names[found[1]] if found else None
