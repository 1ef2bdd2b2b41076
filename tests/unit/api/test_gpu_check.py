"""Whether a pod can use its GPUs: with generated facts, real device files, and a real child process."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hone_api import gpucheck
from hone_api.gpucheck import REQUIRED, RESOURCE, Problem, collecting, describe_closed_devices, find_problem
from hone_api.gpucheck.collecting import ask_torch, open_device
from hone_api.gpucheck.facts import Device, DeviceFile, Facts, Torch, find_vendor
from hone_api.gpucheck.judgement import judge_files, judge_torch
from hone_api.gpucheck.probe import SIZE, probe
from hone_api.reasons import GPU_NOT_USABLE, HoneError
from hone_api.requiredgpus import require_gpus
from long_matrix import sample

ROOT = Path(__file__).parents[3]
CRDS = Path(gpucheck.__file__).parents[2]
HONE, RENDER = 65532, 109
KFD, NODE = "/dev/kfd", "/dev/dri/renderD128"
GOOD = Torch("2.13.0", hip="7.2", seen=1, devices=(Device("MI300X", "gfx942:sramecc+:xnack-"),))


def file(path: str, error: int = 0, mode: int = 0o660, owner: int = 0, group: int = RENDER) -> DeviceFile:
    return DeviceFile(path, error, mode, owner, group)


def facts(**more: Any) -> Facts:
    found = Facts(1, "amd.com/gpu", HONE, frozenset({HONE}), file(KFD), (file(NODE),), driver="6.16.6", torch=GOOD)
    return replace(found, **more)


def judge(found: Facts) -> Problem | None:
    return judge_files(found) or judge_torch(found)


def denied(**of_file: Any) -> Facts:
    return facts(kfd=file(KFD, errno.EACCES, **of_file), render=(file(NODE, errno.EACCES, **of_file),))


GROUP = f"Set spec.pod.supplementalGroups: [{RENDER}], or for all pods with GPUs the chart's value"
UDEV = "the nodes (package amdgpu-insecure-instinct-udev-rules"
CASES: dict[str, tuple[Facts, str, str]] = {
    "no kfd": (facts(kfd=None), "the container has no /dev/kfd", "device plugin or DRA driver"),
    "no render node": (facts(render=()), "the container has no /dev/dri/renderD*", "runtime.requireGpus: false"),
    "the group is missing": (denied(), f"user {HONE} with the groups {HONE} can't open /dev/kfd: Permission", GROUP),
    "two groups are missing": (
        facts(kfd=file(KFD, errno.EACCES), render=(file(NODE, errno.EACCES, group=44),)),
        "mode 0660, owner 0, group 109",
        "Set spec.pod.supplementalGroups: [44, 109]",
    ),
    "only the render node is closed": (facts(render=(file(NODE, errno.EACCES),)), f"can't open {NODE}", GROUP),
    "no group helps": (
        denied(mode=0o600),
        "mode 0600",
        f"Open the devices to all users by AMD's udev rule on {UDEV}",
    ),
    "root's group": (denied(group=0), "group 0", "device_ownership_from_security_context = true"),
    "another user namespace": (denied(group=65534), "group 65534", UDEV),
    "the mode allows it": (
        facts(kfd=file(KFD, errno.EPERM, mode=0o666)),
        "Operation not permitted (mode 0666, owner 0, group 109), although its mode allows it",
        "container_use_devices",
    ),
    "the group is there": (replace(denied(), groups=frozenset({RENDER})), "although its mode allows it", "SELinux"),
    "no driver answers": (facts(kfd=file(KFD, errno.ENXIO)), "No such device or address", "modprobe amdgpu"),
    "a CUDA build": (facts(torch=Torch("2.13", cuda="12.8")), "is built for CUDA 12.8", "torch for ROCm"),
    "the process has too many open files": (facts(kfd=file(KFD, errno.EMFILE)), "Too many open files", "LimitNOFILE"),
    "the node has too many open files": (facts(kfd=file(KFD, errno.ENFILE)), "Too many open files in", "fs.file-max"),
    "a GPU that is reset": (facts(kfd=file(KFD, errno.EBUSY)), "/dev/kfd can't be opened: Device or", "being reset"),
    "a CPU build": (facts(torch=Torch("2.13")), "is built for CPUs", "torch for ROCm"),
    "a HIP build for NVIDIA": (facts(resource="nvidia.com/gpu"), "is built for HIP 7.2", "torch for CUDA"),
    "fewer than asked for": (facts(wanted=2), "torch sees 1 (torch 2.13.0 for HIP 7.2, amdgpu driver 6.16.6)", "ROCm"),
    "hidden": (
        facts(wanted=2, visible={"HIP_VISIBLE_DEVICES": "0"}),
        "HIP_VISIBLE_DEVICES is '0', with which torch sees 1",
        "Remove HIP_VISIBLE_DEVICES from spec.pod.env",
    ),
    "GPUs of a resource whose name does not tell the vendor": (
        facts(resource="example.com/gpu", kfd=None, torch=Torch("2.13", cuda="13.0", error="Found no driver. See x")),
        "torch sees 0: Found no driver, See x (torch 2.13 for CUDA 13.0)",
        "nvidia-smi",
    ),
    "all hidden": (
        facts(visible={"CUDA_VISIBLE_DEVICES": "-1"}, torch=replace(GOOD, seen=0)),
        "CUDA_VISIBLE_DEVICES is '-1', with which torch sees 0",
        "Remove CUDA_VISIBLE_DEVICES",
    ),
    "an index that there is not": (
        facts(visible={"HIP_VISIBLE_DEVICES": "3"}, torch=replace(GOOD, seen=0)),
        "HIP_VISIBLE_DEVICES is '3', with which torch sees 0",
        "Remove HIP_VISIBLE_DEVICES",
    ),
    "indices of a whole machine": (
        facts(wanted=2, visible={"CUDA_VISIBLE_DEVICES": "4,5"}, torch=replace(GOOD, seen=0)),
        "CUDA_VISIBLE_DEVICES is '4,5', with which torch sees 0",
        "Remove CUDA_VISIBLE_DEVICES",
    ),
    "an index twice": (
        facts(wanted=2, visible={"HIP_VISIBLE_DEVICES": "0,0"}),
        "HIP_VISIBLE_DEVICES is '0,0', with which torch sees 1",
        "Remove HIP_VISIBLE_DEVICES",
    ),
    "the name of a GPU": (
        facts(visible={"ROCR_VISIBLE_DEVICES": "GPU-deadbeef"}, torch=replace(GOOD, seen=0)),
        "ROCR_VISIBLE_DEVICES is 'GPU-deadbeef', with which torch sees 0",
        "Remove ROCR_VISIBLE_DEVICES",
    ),
    "all that it has are shown": (
        facts(visible={"HIP_VISIBLE_DEVICES": " 0, 1"}, torch=replace(GOOD, seen=0)),
        "torch sees 0 (torch 2.13.0 for HIP 7.2",
        "compatibility matrix",
    ),
    "a driver that hangs": (facts(torch="no answer within 600 s"), "no answer within 600 s", "`dmesg`"),
    "empty is not set for HIP": (
        facts(visible={"HIP_VISIBLE_DEVICES": ""}, torch=replace(GOOD, seen=0)),
        "torch sees 0 (torch 2.13.0 for HIP 7.2",
        "compatibility matrix",
    ),
    "one of two render nodes is closed": (
        facts(wanted=2, render=(file(NODE), file("/dev/dri/renderD129", errno.EACCES))),
        "can't open /dev/dri/renderD129",
        GROUP,
    ),
    "none initialized": (
        facts(torch=replace(GOOD, seen=0, devices=(), error="No HIP GPUs are available")),
        "torch sees 0: No HIP GPUs are available",
        "compatibility matrix",
    ),
    "no code for the GPU": (
        facts(torch=replace(GOOD, architectures=("gfx90a",), devices=(Device("MI300X", "gfx942:xnack-", "bad"),))),
        "has no code for GPU 0 (MI300X, gfx942:xnack-), only for gfx90a",
        "built for gfx942",
    ),
    "it does not compute": (
        facts(torch=replace(GOOD, devices=(Device("MI300X", "gfx942", "HIP error: out of memory. Try x."),))),
        "does not compute: HIP error: out of memory, Try x (torch",
        "kubectl cordon NODE",
    ),
    "no RCCL": (
        facts(wanted=2, torch=replace(GOOD, seen=2, has_collectives=False)),
        "has no RCCL",
        "set spec.resources.gpus: 1",
    ),
    "the check crashed": (facts(torch="signal 6: hsa"), "ended without a result: signal 6: hsa", "The log has all"),
}


@pytest.mark.parametrize(("found", "cause", "remedy"), CASES.values(), ids=CASES)
def test_each_cause_has_its_remedy(found: Facts, cause: str, remedy: str) -> None:
    problem = judge(found)
    assert problem
    assert cause in problem.cause
    assert remedy in problem.remedy


FILES = [
    None,
    *(file(KFD, *how) for how in product((0, errno.EACCES, errno.EPERM, errno.ENXIO), (0o600, 0o660, 0o666), (0,))),
    file(KFD, errno.EACCES, group=0),
]
NODES = [(), (file(NODE),), (file(NODE, errno.EACCES),), (file(NODE, errno.ENODEV), file(NODE))]
BUILDS: list[dict[str, Any]] = [{"hip": "7.2"}, {"hip": None, "cuda": "12.8"}, {"hip": None}]
COMPUTING = [{}, {"seen": 0, "devices": ()}, {"devices": (Device("G", "gfx90a", "HIP error. It is. Bad."),)}]
RESOURCES = ["amd.com/gpu", "amd.com/cpx_nps4", "nvidia.com/gpu", "example.com/gpu"]


@pytest.mark.parametrize(
    ("resource", "kfd", "render", "build", "computing", "wanted"),
    sample(list(product(RESOURCES, FILES, NODES, BUILDS, COMPUTING, (1, 2))), "gpus", 200),
)
def test_gpus_are_usable_or_there_is_one_cause_and_a_remedy(
    resource: str, kfd: DeviceFile | None, render: tuple[DeviceFile, ...], build: Any, computing: Any, wanted: int
) -> None:
    torch = replace(GOOD, **build, **computing)
    problem = judge(facts(resource=resource, kfd=kfd, render=render, torch=torch, wanted=wanted))
    vendor = find_vendor(resource)
    has_files = (
        vendor == "nvidia"
        or (kfd is None and vendor is None)
        or bool(kfd and not kfd.error and any(not each.error for each in render))
    )
    has_build = {"amd": torch.hip, "nvidia": torch.cuda, None: torch.hip or torch.cuda}[vendor]
    computes = torch.seen >= wanted and not any(device.error for device in torch.devices)
    assert (problem is None) == bool(has_files and has_build and computes)
    if problem:
        assert ". " not in problem.cause, "the operator takes the first full stop for the end of the cause"
        assert not problem.cause.endswith(".")
        assert re.fullmatch(r"[A-Z].*\.", problem.remedy)
        assert resource in problem.cause


def test_remedies_name_existing_fields_and_values() -> None:
    problems = [judge(found) for found, _, _ in CASES.values()]
    text = " ".join(f"{problem.cause} {problem.remedy}" for problem in problems if problem) + GPU_NOT_USABLE.remedy
    values = yaml.safe_load((ROOT / "charts/hone/values.yaml").read_text())["runtime"]
    named = set(re.findall(r"\bruntime\.(\w+)", text))
    assert {"supplementalGroups", "requireGpus"} <= named <= values.keys()
    schema = yaml.safe_load((ROOT / "charts/hone/files/crds/finetunejobs.yaml").read_text())
    spec = schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    for part, field in set(re.findall(r"\bspec\.(\w+)\.(\w+)", text)):
        assert field in spec[part]["properties"]


@pytest.mark.parametrize(
    ("resource", "vendor"),
    [
        ("amd.com/gpu", "amd"),
        ("amd.com/cpx_nps4", "amd"),
        ("deviceclass.resource.kubernetes.io/gpu.amd.com", "amd"),
        ("nvidia.com/mig-1g.10gb", "nvidia"),
        ("example.com/gpu", None),
        ("notamd.com/gpu", None),
        ("amd.company/gpu", None),
    ],
)
def test_the_resource_shows_the_vendor_of_the_gpus(resource: str, vendor: str | None) -> None:
    assert find_vendor(resource) == vendor


def make_devices(root: Path) -> Path:
    """Create files that can be opened, like device files of a container."""
    (root / "dev/dri").mkdir(parents=True)
    for name in ("kfd", "dri/card0", "dri/renderD128"):
        (root / "dev" / name).touch()
    return root


def test_a_device_file_that_does_not_answer_differs_from_a_missing_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "kfd"))
        found = open_device(tmp_path / "kfd")
    assert found
    assert found.error == errno.ENXIO
    assert open_device(tmp_path / "renderD128") is None


def test_on_the_users_own_machine_the_closed_device_is_named(tmp_path: Path) -> None:
    assert describe_closed_devices(tmp_path) is None
    root = make_devices(tmp_path)
    assert describe_closed_devices(root) is None
    (root / "dev/kfd").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "dev/kfd"))
    found = describe_closed_devices(root)
    assert found
    assert "kfd can't be opened: No such device or address. Look for amdgpu" in found


def make_closed(root: Path, *, kfd: bool, vendor: str, container: str = "") -> Path:
    make_devices(root)
    if not kfd:
        (root / "dev/kfd").unlink()
    maker = root / "sys/class/drm/renderD128/device/vendor"
    maker.parent.mkdir(parents=True)
    maker.write_text(f"{vendor}\n")
    if container:
        (root / container).parent.mkdir(exist_ok=True)
        (root / container).touch()
    return root


@pytest.mark.parametrize(
    ("kfd", "vendor", "container", "group", "expected"),
    [
        (False, "0x8086", "", 992, None),
        (False, "0x1002", "", 992, None),
        (True, "0x10de", "", 992, None),
        (True, "0x1002", "", 992, "Run `sudo usermod"),
        (True, "0x1002", ".dockerenv", 992, "Start the container with `--group-add 992`"),
        (True, "0x1002", "run/.containerenv", 65534, "podman run --group-add keep-groups"),
    ],
)
def test_only_closed_files_of_amd_are_reported_with_what_opens_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kfd: bool,
    vendor: str,
    container: str,
    group: int,
    expected: str | None,
) -> None:
    def open_closed(path: Path) -> DeviceFile | None:
        denied = errno.EACCES if "renderD" in path.name else 0
        return DeviceFile(str(path), denied, 0o660, 0, group) if path.exists() else None

    root = make_closed(tmp_path, kfd=kfd, vendor=vendor, container=container)
    monkeypatch.setattr(collecting, "open_device", open_closed)
    found = describe_closed_devices(root)
    assert (found is None) == (expected is None)
    assert (expected or "") in (found or "")


# The other user can't read this checkout, so the process becomes that user after its imports.
AS_ANOTHER_USER = """
import os, sys
from pathlib import Path
from hone_api.gpucheck import describe_closed_devices, find_problem
os.chdir("/")
os.setgroups([int(group) for group in sys.argv[2:]])
os.setgid(65532)
os.setuid(65532)
found = find_problem({"HONE_REQUIRED_GPUS": "1"}, lambda environ, wanted: "asked", Path(sys.argv[1]))
print(found.cause, found.remedy, describe_closed_devices(Path(sys.argv[1])))
"""


def test_a_user_without_the_group_gets_its_name() -> None:
    if os.getuid() != 0:
        pytest.skip("another user's process takes root")

    def run(*groups: int) -> str:
        command = [sys.executable, "-c", AS_ANOTHER_USER, folder, *map(str, groups)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    with TemporaryDirectory(dir="/tmp") as folder:  # every user reaches it, unlike tmp_path
        root = make_devices(Path(folder))
        root.chmod(0o755)
        for path in (root / "dev/kfd", root / "dev/dri/renderD128"):
            os.chown(path, 0, RENDER)
            path.chmod(0o660)
        said = run()
        assert "user 65532 with the groups 65532 can't open" in said
        assert (
            f"Permission denied (mode 0660, owner 0, group {RENDER}) Set spec.pod.supplementalGroups: [{RENDER}]"
            in said
        )
        assert f"(it belongs to group {RENDER}). Run `sudo usermod --append --groups render,video $USER`" in said
        assert "ended without a result: asked" in run(RENDER)


FAKE = """
import os, sys, time
from types import SimpleNamespace as N
print("a library's greeting")
class cuda:
    init = staticmethod(lambda: None)
    device_count = staticmethod(lambda: 2)
    get_arch_list = staticmethod(lambda: ["gfx942"])
    get_device_properties = staticmethod(lambda index: N(name="MI300X", gcnArchName="gfx942:xnack-"))
version = N(hip="7.2", cuda=None)
distributed = N(is_available=lambda: True, is_nccl_available=lambda: True)
__version__ = "2.13.0"
class ones:
    def __init__(self, *shape, device): pass
    def __matmul__(self, other): return self
    def sum(self): return 256**3
"""


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", "7.2"),
        (
            "sys.stderr.write('HSA exception.\\nGone. '); sys.stderr.flush(); os.abort()",
            "signal 6: HSA exception, Gone",
        ),
        ("sys.exit(3)", "exit code 3"),
        ("time.sleep(600)", "no answer within"),
    ],
)
def test_torch_is_asked_in_a_process_of_its_own(tmp_path: Path, more: str, expected: str) -> None:
    (tmp_path / "torch.py").write_text(FAKE + more)
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{CRDS}"}
    seconds = 1.0 if "sleep" in more else 300.0
    found = ask_torch(environ, 1, seconds)
    if isinstance(found, str):
        assert expected in found
        return
    assert (found.hip, found.seen, found.architectures) == (expected, 2, ("gfx942",))
    assert found.devices == (Device("MI300X", "gfx942:xnack-"),)


def test_a_process_that_can_not_be_ended_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(FAKE + "time.sleep(600)")
    left: list[subprocess.Popen[bytes]] = []
    kill = subprocess.Popen.kill
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: left.append(process))
    monkeypatch.setattr(collecting, "END_SECONDS", 0.1)
    try:
        assert "no answer" in str(ask_torch({**os.environ, "PYTHONPATH": f"{tmp_path}:{CRDS}"}, 1, 0.1))
        assert left[0].poll() is None
    finally:
        for process in left:
            kill(process)
            process.wait()


def test_an_answer_is_read_while_a_child_of_the_process_still_runs(tmp_path: Path) -> None:
    child = tmp_path / "child"
    fork = "pid = os.fork()\nif not pid:\n    time.sleep(600)\n    os._exit(0)\n"
    fork += f"open({str(child)!r}, 'w').write(str(pid))\n"
    (tmp_path / "torch.py").write_text(FAKE + fork)
    try:
        assert not isinstance(ask_torch({**os.environ, "PYTHONPATH": f"{tmp_path}:{CRDS}"}, 1, 300.0), str)
    finally:
        os.kill(int(child.read_text()), signal.SIGKILL)  # there is such a process still


def fake_torch(**cuda: Any) -> Any:
    def ones(*shape: int, device: str) -> Any:
        class Matrix:
            def __matmul__(self, other: Any) -> Any:
                return SimpleNamespace(sum=lambda: SIZE**3 - (device == "cuda:1"))

        return Matrix()

    given = {
        "init": lambda: None,
        "device_count": lambda: 3,
        "get_arch_list": list,
        "get_device_properties": lambda index: SimpleNamespace(name=f"G{index}", major=9, minor=0),
    }
    return SimpleNamespace(
        cuda=SimpleNamespace(**(given | cuda)),
        version=SimpleNamespace(hip=None, cuda="12.8"),
        distributed=SimpleNamespace(is_available=lambda: False),
        ones=ones,
        __version__="2.13.0",
    )


def test_each_requested_gpu_multiplies_and_its_result_is_compared() -> None:
    found = probe(fake_torch(), 2)
    assert [device["error"] for device in found["devices"]] == [
        "",
        f"the sum of a product of matrices is {float(SIZE**3 - 1)} instead of {SIZE**3}",
    ]
    assert found["devices"][0]["architecture"] == "sm_90"
    assert not found["has_collectives"]


def test_an_error_of_torch_is_reported() -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("No HIP GPUs are available")

    assert probe(fake_torch(init=fail), 1)["error"] == "No HIP GPUs are available"
    [device] = probe(fake_torch(get_device_properties=fail), 1)["devices"]
    assert device["error"] == "No HIP GPUs are available"


def test_torch_is_not_asked_if_no_gpu_is_required(tmp_path: Path) -> None:
    for environ in ({}, {REQUIRED: "0"}, {REQUIRED: " 0 "}):
        assert find_problem(environ, root=tmp_path) is None


def test_files_come_before_torch_and_a_wrong_number_before_both(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask(environ: Any, wanted: int) -> Torch:
        asked.append(wanted)
        return replace(GOOD, seen=2, devices=GOOD.devices * 2)

    environ = {REQUIRED: "2", RESOURCE: "amd.com/gpu"}
    missing = find_problem(environ, ask, tmp_path)
    assert missing
    assert "no /dev/kfd" in missing.cause
    assert not asked
    assert find_problem(environ, ask, make_devices(tmp_path)) is None
    assert asked == [2]
    wrong = find_problem({REQUIRED: "all"}, ask, tmp_path)
    assert wrong
    assert f"{REQUIRED} is 'all'" in wrong.cause


def test_programs_fail_with_the_reason() -> None:
    with pytest.raises(HoneError) as error:
        require_gpus({REQUIRED: "none"})
    assert error.value.reason is GPU_NOT_USABLE
    require_gpus({})
