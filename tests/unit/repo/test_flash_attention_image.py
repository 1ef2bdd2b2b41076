"""FlashAttention in the runtime image: what Dockerfile.rocm does with its build argument, as far as a shell runs it."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hone_api.attention import TRITON, find_kernels

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "Dockerfile.rocm"
UV = """#!/bin/sh
triton="$FLASH_ATTENTION_TRITON_AMD_ENABLE"
echo "$triton|$BUILD_TARGET|$FLASH_ATTENTION_FORCE_BUILD|$GPU_ARCHS|$PYTHONPATH|$*" >>"$CALLS"
mkdir -p "$BUILD"
exit "${FAILS:-0}"
"""


def read_run(stage: str, text: str) -> str:
    spec = importlib.util.spec_from_file_location("dockerfile", ROOT / "tests/bases/dockerfile.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.read_run(DOCKERFILE, stage, text))


def stages() -> dict[str, tuple[str, str]]:
    """Return base and instructions by stage."""
    parts = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.M)[1:]
    found = {}
    for part in parts:
        line, _, rest = part.partition("\n")
        base, _, name = line.partition(" AS ")
        found[name] = (base, rest)
    return found


def run(tmp_path: Path, choice: str, **variables: str) -> tuple[int, list[list[str]]]:
    """Run the instruction with a stand-in for uv; the exit code, and the calls."""
    uv, build = tmp_path / "uv", tmp_path / "build"
    uv.write_text(UV)
    uv.chmod(0o755)
    command = read_run("runtime", "flash-attention-build.txt")
    for old, new in {"/opt/uv/bin/uv": uv, "/tmp/flash-build": build}.items():
        assert old in command
        command = command.replace(old, str(new))
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": "/opt/hone", "GPU_ARCHS": "gfx942", "CALLS": f"{tmp_path}/calls"}
    base |= {"BUILD": str(build), "FLASH_ATTENTION": choice}
    done = subprocess.run(["sh", "-uc", command], env=base | variables, check=False)
    calls = tmp_path / "calls"
    assert not build.exists() or done.returncode
    return done.returncode, [line.split("|") for line in calls.read_text().splitlines()] if calls.exists() else []


def test_without_the_argument_nothing_is_installed(tmp_path: Path) -> None:
    assert re.search(r"^ARG FLASH_ATTENTION=none$", DOCKERFILE.read_text(), re.M)
    assert run(tmp_path, "none") == (0, [])


@pytest.mark.parametrize(("choice", "enable"), [("triton", "TRUE"), ("ck", "FALSE")])
def test_it_is_built_from_its_source_for_rocm(choice: str, enable: str, tmp_path: Path) -> None:
    code, [tools, package] = run(tmp_path, choice, **{TRITON: enable})
    assert code == 0
    assert "--requirement flash-attention-build.txt" in tools[-1]
    assert package[:-1] == [enable, "rocm", "TRUE", "gfx942", f"{tmp_path}/build:/opt/hone"]
    assert "--no-build-isolation" in package[-1]
    assert "--target /opt/hone" in package[-1]
    for call in (tools, package):
        # A cached wheel of the one would be taken for the other.
        assert {"--no-cache", "--no-deps", "--require-hashes"} <= set(call[-1].split())


def test_a_build_that_fails_fails_the_image(tmp_path: Path) -> None:
    code, calls = run(tmp_path, "triton", FAILS="3", **{TRITON: "TRUE"})
    assert code == 3
    assert len(calls) == 1


def test_each_choice_has_a_stage_with_the_variable_that_selects_its_kernels() -> None:
    found = stages()
    assert found["runtime"][0] == "flash-${FLASH_ATTENTION}"
    values = {"none": [], "triton": ["TRUE"], "ck": ["FALSE"]}
    assert {name for name in found if name.startswith("flash-")} == {f"flash-{choice}" for choice in values}
    for choice, value in values.items():
        base, rest = found[f"flash-{choice}"]
        assert base == "runtime-dependencies"
        assert f"COPY --from=flash-{choice} " in found["runtime"][1], "buildah 1.28 would not build it"
        assert re.findall(rf"^ENV {TRITON}=(\S+)$", rest, re.M) == value


def test_the_files_that_are_copied_are_in_the_context_and_pinned() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "!flash-attention*.txt" in ignored
    for name in ("flash-attention.txt", "flash-attention-build.txt"):
        text = (ROOT / name).read_text()
        pins = re.findall(r"^([\w-]+)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.M)
        assert pins == re.findall(r"^([\w-]+)==", text, re.M)
    assert re.search(r"^flash-attn==2\.8\.3", (ROOT / "flash-attention.txt").read_text(), re.M), (
        "another version: read whether its Triton kernels mind windows and soft caps (hone_api/attention.py)"
    )


def model(**config: Any) -> Any:
    part = SimpleNamespace(_supports_sdpa=True, _supports_flash_attn=True)
    part.config = SimpleNamespace(head_dim=64, **config)
    part.config.get_text_config = lambda: part.config
    part.modules = lambda: [part]
    return part


@pytest.mark.parametrize(
    ("config", "is_exact"),
    [
        ({}, True),
        ({"sliding_window": None, "attn_logit_softcapping": None}, True),
        ({"sliding_window": 4096}, False),
        ({"attention_chunk_size": 8192}, False),
        ({"attn_logit_softcapping": 50.0}, False),
    ],
)
def test_triton_kernels_are_not_used_where_they_would_compute_something_else(
    config: dict[str, Any], is_exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, flash in (("TRUE", is_exact), ("FALSE", True), (None, True)):
        monkeypatch.delenv(TRITON, raising=False)
        if value:
            monkeypatch.setenv(TRITON, value)
        assert ("flash_attention_2" in find_kernels(model(**config))) is flash
