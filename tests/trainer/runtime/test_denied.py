"""Refused access to a volume is reported by its name, with the path and the user that was refused."""

import errno
import os

import pytest
from hone_trainer.runtime.errors import classify_error


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("path", ["/output/checkpoints", "/claims/models/config.json", "/cache/hub"])
def test_a_volume_that_refuses_access_is_named(code: int, path: str) -> None:
    found = classify_error(OSError(code, os.strerror(code), path))
    assert found.reason.name == "VolumeAccessDenied"
    assert found.message.startswith(f"{path}: {os.strerror(code)}, for user {os.getuid()} and groups ")
    assert "spec.pod.supplementalGroups" in found.remedy


def test_a_refusal_that_a_library_wraps_is_found() -> None:
    error = ValueError("could not load the model")
    error.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/claims/models/model.safetensors")
    assert classify_error(error).reason.name == "VolumeAccessDenied"
    assert classify_error(RuntimeError("Permission denied (os error 13)")).reason.name == "VolumeAccessDenied"


def test_a_device_is_not_a_volume() -> None:
    assert classify_error(PermissionError(errno.EACCES, "Permission denied", "/dev/kfd")).reason.name == "InternalError"
