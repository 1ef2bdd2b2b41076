"""What Dockerfile.rocm installs on a base; run by `make test-bases` alone, in its environments."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import hone_trainer
import hone_trainer.config.device
import pytest
import torch
import transformers
from base_images import BASES

TARGET = Path(os.environ.get("HONE_BASE_TARGET", ""))
BASE = next((base for base in BASES if base.torch == os.environ.get("HONE_BASE")), BASES[0])
OF_THE_BASE = re.compile(r"torch|triton|nvidia|cuda|libcu", re.IGNORECASE)
pytestmark = pytest.mark.skipif(
    "HONE_BASE_TARGET" not in os.environ, reason="runs in the environment of `make test-bases`"
)


def test_this_is_the_python_and_the_torch_of_the_base() -> None:
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" == BASE.python
    assert torch.__version__.partition("+")[0] == BASE.torch
    assert TARGET not in Path(torch.__file__).parents


def test_packages_and_hone_come_from_the_folders_of_the_image() -> None:
    assert TARGET in Path(transformers.__file__).parents
    assert Path(hone_trainer.__file__).parents[1].name == "hone"


def test_nothing_of_the_bases_torch_is_installed_again() -> None:
    installed = {found.metadata["Name"] for found in importlib.metadata.distributions(path=[str(TARGET)])}
    assert "transformers" in installed
    assert [name for name in installed if OF_THE_BASE.search(name)] == []
    assert [entry.name for entry in TARGET.iterdir() if OF_THE_BASE.match(entry.name)] == []


def test_the_device_is_found() -> None:
    device = hone_trainer.config.device.detect_device()
    assert (device.kind, device.cores > 0, device.memory > 0) == ("cpu", True, True)


@pytest.mark.parametrize(("needed", "refused"), [("torch>=2.10,<2.14", False), ("torch>=99", True)])
def test_the_image_is_not_built_on_another_torch(tmp_path: Path, needed: str, refused: bool) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[project]\ndependencies = ["pydantic>=2", "{needed}"]\n')
    done = subprocess.run(["sh", "-c", os.environ["HONE_BASE_CHECK"]], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode != 0) == refused, done.stderr
    found = importlib.metadata.version("torch")
    assert (f"BASE_IMAGE has torch {found}, and Hone needs {needed}" in done.stderr) == refused
