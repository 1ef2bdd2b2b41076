"""Find the cause why GPUs can't be used, and its remedy, from the facts. Pure.

The device files come first, because torch reports only that it finds no GPU. Then torch: its build, the GPUs that it
finds, whether each one computes, and RCCL for several.
"""

import errno
import os
import re
from itertools import takewhile

from .facts import Device, DeviceFile, Facts, Problem, Torch, find_vendor

DENIED = (errno.EACCES, errno.EPERM)
# The kernel shows this id for users and groups that a user namespace lacks.
OVERFLOW_ID = 65534
LONGEST_MESSAGE = 300
# What Python prints where torch or one of its libraries is missing in the image.
_NOT_IMPORTED = re.compile(
    r"No module named|(?<!libcuda\.so\.1: )cannot open shared object file|cannot import name|undefined symbol"
)

OPEN_TO_ALL = (
    "open the devices to all users by AMD's udev rule on the nodes (package amdgpu-insecure-instinct-udev-rules, or "
    'KERNEL=="kfd", MODE="0666" and SUBSYSTEM=="drm", KERNEL=="renderD*", MODE="0666"), or give them to the '
    "container's user by device_ownership_from_security_context = true in containerd's configuration"
)
NOT_REAL = (
    "Where the cluster's GPUs are not real, set the chart's value runtime.requireGpus: false to compute on the CPU."
)
_LOOK_AT_NODE = (
    "See on the node what else uses the GPU (`rocm-smi --showpids`) and what the driver reports (`dmesg`); run "
    "`kubectl cordon NODE` to have other nodes used meanwhile"
)
_BUSY = f"A GPU is being reset, or a virtual machine or another process has it for itself. {_LOOK_AT_NODE}."
# By the errno of opening a device file.
_REMEDIES = {
    errno.EMFILE: "The container may have no more open files: raise its limit on the node (LimitNOFILE of containerd's "
    "or CRI-O's systemd unit, `ulimit -n`), and look for a process in the pod that never closes its files.",
    errno.ENFILE: "All processes of the node together have as many open files as its kernel allows: raise "
    "`sysctl fs.file-max` there, or find the process that never closes its files (`lsof`).",
    errno.EBUSY: _BUSY,
    errno.EAGAIN: _BUSY,
}
IMAGE = "Name an image in spec.pod.image, or in the chart's values for all objects (runtime.image, runtime.vllmImage),"


def judge_files(facts: Facts) -> Problem | None:
    """Return why the device files can't be used; None if they can, or if GPUs have other device files."""
    vendor = find_vendor(facts.resource)
    if vendor == "nvidia" or (vendor is None and facts.kfd is None):
        return None
    if facts.kfd is None:
        return Problem(f"{_format_request(facts)}, and the container has no /dev/kfd", _format_missing_remedy())
    if facts.kfd.error in DENIED:
        return _explain_denied(facts, [facts.kfd, *_find_denied(facts)])
    if facts.kfd.error:
        return _explain_broken(facts, facts.kfd)
    if not facts.render:
        return Problem(
            f"{_format_request(facts)}, and the container has no /dev/dri/renderD*", _format_missing_remedy()
        )
    if any(file.error == 0 for file in facts.render):
        return None
    if denied := _find_denied(facts):
        return _explain_denied(facts, denied)
    return _explain_broken(facts, facts.render[0])


def judge_torch(facts: Facts) -> Problem | None:
    """Return why torch can't use the GPUs; None if it can. The device files were judged before."""
    torch = facts.torch
    if not isinstance(torch, Torch):
        cause = f"{_format_request(facts)}, and the check whether torch can use them ended without a result: {torch}"
        if _NOT_IMPORTED.search(torch or ""):
            remedy = f"{IMAGE} in which `python3 -c 'import torch'` works. The log has what Python printed."
            return Problem(cause, remedy)
        remedy = f"{_LOOK_AT_NODE}. {_choose_versions_remedy(facts)}"
        return Problem(cause, f"{remedy} The log has all that the check printed.")
    return (
        _judge_build(facts, torch) or _judge_count(facts, torch) or _judge_devices(facts, torch)
    ) or _judge_collectives(facts, torch)


def _judge_build(facts: Facts, torch: Torch) -> Problem | None:
    vendor_version = {"amd": torch.hip, "nvidia": torch.cuda, None: torch.hip or torch.cuda}[
        find_vendor(facts.resource)
    ]
    if vendor_version:
        return None
    platform = {"amd": "ROCm", "nvidia": "CUDA", None: "GPUs"}[find_vendor(facts.resource)]
    found = f"HIP {torch.hip}" if torch.hip else f"CUDA {torch.cuda}" if torch.cuda else "CPUs"
    cause = f"{_format_request(facts)}, and torch {torch.version} in the image is built for {found}"
    return Problem(cause, f"{IMAGE} that has torch for {platform}; Hone's own is built from Dockerfile.rocm.")


def _judge_count(facts: Facts, torch: Torch) -> Problem | None:
    if torch.seen >= facts.wanted:
        return None
    for name, value in facts.visible.items():
        # HIP takes an empty value as not set.
        if (value or not torch.hip) and _count_shown(facts, value) < facts.wanted:
            cause = f"{_format_request(facts)}, and {name} is {value!r}, with which torch sees {torch.seen}"
            return Problem(cause, f"Remove {name} from spec.pod.env: a pod sees no other GPUs than its own.")
    if denied := _find_denied(facts):
        return _explain_denied(facts, denied)
    text = f": {_shorten(torch.error)}" if torch.error else ""
    cause = f"{_format_request(facts)}, and torch sees {torch.seen}{text} ({_format_versions(facts, torch)})"
    return Problem(cause, _choose_versions_remedy(facts))


def _count_shown(facts: Facts, value: str) -> int:
    """Return how many GPUs of the pod a list of indices certainly shows. An index that does not exist ends the list.

    A pod has the GPUs that it requests, and more only if it has more device files. Names of GPUs are unknown here.
    """
    there = {str(index) for index in range(max(facts.wanted, len(facts.render)))}
    return len(set(takewhile(there.__contains__, (entry.strip() for entry in value.split(",")))))


def _judge_devices(facts: Facts, torch: Torch) -> Problem | None:
    for index, device in enumerate(torch.devices):
        if not device.error:
            continue
        which = f"GPU {index} ({device.name}, {device.architecture})"
        if _has_no_code(torch, device):
            known = ", ".join(torch.architectures)
            request = _format_request(facts)
            cause = f"{request}, and torch {torch.version} in the image has no code for {which}, only for {known}"
            return Problem(cause, f"{IMAGE} whose torch is built for {device.architecture.partition(':')[0]}.")
        error, versions = _shorten(device.error), _format_versions(facts, torch)
        cause = f"{_format_request(facts)}, and {which} does not compute: {error} ({versions})"
        return Problem(cause, f"{_LOOK_AT_NODE}. {_choose_versions_remedy(facts)}")
    return None


def _has_no_code(torch: Torch, device: Device) -> bool:
    """Return whether the image lacks kernels for the GPU. A generic kind, such as gfx9-4-generic, is many GPUs'."""
    known = {each.partition(":")[0] for each in torch.architectures}
    is_generic = any(each.endswith("-generic") for each in known)
    return bool(known) and not is_generic and device.architecture.partition(":")[0] not in known


def _judge_collectives(facts: Facts, torch: Torch) -> Problem | None:
    if facts.wanted < 2 or torch.has_collectives:
        return None
    library = "NCCL" if torch.cuda else "RCCL"
    cause = (
        f"{_format_request(facts)}, and torch {torch.version} in the image has no {library}, which several GPUs need"
    )
    return Problem(cause, f"{IMAGE} whose torch has {library}, or set spec.resources.gpus: 1.")


def _format_request(facts: Facts) -> str:
    return f"The pod asks for {facts.wanted} {facts.resource} (spec.resources.gpus)"


def _find_denied(facts: Facts) -> list[DeviceFile]:
    return [file for file in facts.render if file.error in DENIED]


def _explain_denied(facts: Facts, files: list[DeviceFile]) -> Problem:
    first = files[0]
    groups = " ".join(str(group) for group in sorted(facts.groups))
    cause = (
        f"{_format_request(facts)}, and user {facts.user} with the groups {groups} can't open {first.path}: "
        f"{os.strerror(first.error)} (mode {first.mode & 0o777:04o}, owner {first.owner}, group {first.group})"
    )
    if any(_is_allowed(facts, file) for file in files):
        return Problem(
            f"{cause}, although its mode allows it",
            "The container runtime or a security module forbids it: make sure that the pod has its devices from AMD's "
            "device plugin or DRA driver, and on nodes with SELinux run `setsebool -P container_use_devices on`.",
        )
    if all(_opens_by_group(facts, file) for file in files):
        ids = ", ".join(str(group) for group in sorted({file.group for file in files}))
        return Problem(
            cause,
            f"Set spec.pod.supplementalGroups: [{ids}], or for all pods with GPUs the chart's value "
            f"runtime.supplementalGroups: [{ids}]. Or {OPEN_TO_ALL}.",
        )
    return Problem(cause, f"{OPEN_TO_ALL[0].upper()}{OPEN_TO_ALL[1:]}.")


def _opens_by_group(facts: Facts, file: DeviceFile) -> bool:
    """Return whether a group that a pod can get opens the file. Group 0 would open far more than devices."""
    return file.mode & 0o060 == 0o060 and file.owner != facts.user and file.group not in (0, OVERFLOW_ID)


def _is_allowed(facts: Facts, file: DeviceFile) -> bool:
    """Return whether the mode lets the user open the file, by the first class that applies, like the kernel."""
    shift = 6 if file.owner == facts.user else 3 if file.group in facts.groups else 0
    return (file.mode >> shift) & 0o6 == 0o6


def _explain_broken(facts: Facts, file: DeviceFile) -> Problem:
    cause = f"{_format_request(facts)}, and {file.path} can't be opened: {os.strerror(file.error)}"
    if remedy := _REMEDIES.get(file.error):
        return Problem(cause, remedy)
    return Problem(
        cause,
        "The amdgpu driver of the node does not answer: look for amdgpu in the node's `dmesg`, load the driver with "
        "`modprobe amdgpu`, and restart AMD's device plugin there; run `kubectl cordon NODE` to have other nodes used.",
    )


def _format_missing_remedy() -> str:
    return (
        "Make sure that AMD's device plugin or DRA driver runs on the pod's node, that the node has the amdgpu driver "
        f"(`ls /dev/kfd /dev/dri`), and that the container runtime passes devices on. {NOT_REAL}"
    )


def _choose_versions_remedy(facts: Facts) -> str:
    is_for_nvidia = isinstance(facts.torch, Torch) and facts.torch.cuda and not facts.torch.hip
    if find_vendor(facts.resource) == "nvidia" or is_for_nvidia:
        return "Use an image whose CUDA the node's driver supports: compare with what `nvidia-smi` shows on the node."
    return (
        f"{IMAGE} whose ROCm the node's amdgpu driver supports (AMD's compatibility matrix lists them; `rocm-smi` on "
        "the node shows whether its GPUs work)."
    )


def _format_versions(facts: Facts, torch: Torch) -> str:
    built = f"HIP {torch.hip}" if torch.hip else f"CUDA {torch.cuda}"
    driver = f", amdgpu driver {facts.driver or 'of unknown version'}" if torch.hip else ""
    return f"torch {torch.version} for {built}{driver}"


def _shorten(message: str) -> str:
    """Return the beginning of a foreign message, on one line and as one sentence, because a full stop ends a cause."""
    return " ".join(message.split())[:LONGEST_MESSAGE].replace(". ", ", ").rstrip(". ")
