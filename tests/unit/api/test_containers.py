"""The names that the operator writes into pods and reads from them are those of the server and the trainer."""

import importlib.util
import tomllib
from pathlib import Path

import pytest
from hone_api import containers, layout
from hone_api.reasons import CATALOGUE, HoneError, Reason
from hone_server.vllm import check as check_module
from hone_server.vllm import middleware as vllm_middleware
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[3]
PROGRAMS = [getattr(containers, name) for name in dir(containers) if name.endswith("_PROGRAM")]
LINE = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)


def read_source(module: str) -> str:
    found = importlib.util.find_spec(module)
    assert found
    assert found.origin
    return Path(found.origin).read_text()


@pytest.mark.parametrize(
    "module", [containers.LINK_ARTIFACTS, containers.ADAPTER_SIDECAR, containers.KEY_GUARD, containers.MODEL_DOWNLOAD]
)
def test_modules_of_containers_can_be_run(module: str) -> None:
    assert 'if __name__ == "__main__":' in read_source(module)


def test_programs_of_containers_are_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {containers.TRAINER, containers.EMBEDDED_ENGINE} <= scripts.keys()


def test_modules_in_vllms_image_use_the_names_of_the_contract() -> None:
    """They import nothing of Hone, so they repeat the names."""
    middleware, check = read_source("hone_server.vllm.middleware"), read_source("hone_server.vllm.check")
    assert f"class {containers.VLLM_MIDDLEWARE_CLASS}:" in middleware
    assert vllm_middleware.KEY_FILE_ENV == check_module.KEY_FILE_ENV == layout.API_KEY_FILE_ENV
    assert layout.ADMIN_TOKEN_FILE_ENV == vllm_middleware.TOKEN_FILE_ENV
    assert vllm_middleware.ADMIN_HEADER.decode() == layout.ADMIN_HEADER.lower()
    assert check_module.ADAPTERS_FOLDER.name == layout.ADAPTER_LINKS
    assert f'getLogger("{containers.VLLM_MIDDLEWARE}")' in middleware
    assert f'getLogger("{containers.VLLM_CHECK}")' in check
    assert f'"{containers.CHECK_PROGRAM}: {{' in check


@given(program=st.sampled_from(PROGRAMS), reason=st.sampled_from(list(CATALOGUE.values())), before=LINE, message=LINE)
def test_a_failure_line_is_found_in_a_log(program: str, reason: Reason, before: str, message: str) -> None:
    error = HoneError(reason, message, remedy="Do this.")
    log = f"{before}\n{containers.format_failure_line(program, error)}\n"
    assert containers.find_failures(log)[-1] == (error.reason.name, error.format_message())


def test_lines_of_other_programs_are_no_failures() -> None:
    assert len(PROGRAMS) == 5
    assert containers.find_failures("hone-other: InvalidSpec: no\nsay hone-server: InvalidSpec: no") == []
