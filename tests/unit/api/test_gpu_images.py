"""What the check of GPUs says of images: torch that can't be imported, and kinds of GPUs that it has kernels for."""

import pytest
from hone_api.gpucheck.facts import Device, DeviceFile, Facts, Torch
from hone_api.gpucheck.judgement import judge_torch

OPEN = DeviceFile("/dev/kfd", 0, 0o666)


def make_facts(torch: Torch | str) -> Facts:
    return Facts(1, "amd.com/gpu", 65532, frozenset({65532}), OPEN, (OPEN,), "6.12", torch=torch)


def make_torch(architectures: tuple[str, ...], device: Device) -> Torch:
    return Torch("2.13.0", hip="7.2", seen=1, devices=(device,), architectures=architectures)


@pytest.mark.parametrize(
    "words",
    [
        "exit code 1: ModuleNotFoundError: No module named 'torch'",
        "exit code 1: ImportError: libamdhip64.so.7: cannot open shared object file: No such file or directory",
        "exit code 1: ImportError: libtorch_hip.so: undefined symbol: ncclCommWindowRegister",
    ],
)
def test_an_image_whose_torch_is_not_imported_is_the_cause_and_no_node(words: str) -> None:
    found = judge_torch(make_facts(words))
    assert found
    assert "import torch" in found.remedy
    assert "kubectl cordon" not in found.remedy


@pytest.mark.parametrize("words", ["signal 6: HSA_STATUS_ERROR", "no answer within 600 s", "signal 11"])
def test_a_check_that_a_driver_ends_points_to_the_node(words: str) -> None:
    found = judge_torch(make_facts(words))
    assert found
    assert "dmesg" in found.remedy


@pytest.mark.parametrize("architectures", [("gfx9-4-generic",), ("gfx90a", "gfx942:xnack-"), ()])
def test_a_gpu_that_an_image_may_have_code_for_is_not_called_unknown(architectures: tuple[str, ...]) -> None:
    device = Device("AMD Instinct MI300A", "gfx942:sramecc+:xnack-", "HIP error: out of memory")
    found = judge_torch(make_facts(make_torch(architectures, device)))
    assert found
    assert "out of memory" in found.cause
    assert "no code" not in found.cause


def test_a_gpu_that_an_image_has_no_code_for_is_named() -> None:
    device = Device("AMD Instinct MI355X", "gfx950:sramecc+:xnack-", "HIP error: invalid device function")
    found = judge_torch(make_facts(make_torch(("gfx90a", "gfx942"), device)))
    assert found
    assert "no code for GPU 0 (AMD Instinct MI355X" in found.cause
