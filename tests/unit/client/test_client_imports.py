"""Importing the client is cheap: it loads few modules, and nothing of what trains, serves or draws."""

import subprocess
import sys

import hone
import pytest

HEAVY = {"torch", "transformers", "peft", "trl", "numpy", "kubernetes", "httpx", "pydantic", "yaml", "IPython", "rich"}
# Of Python itself about 30 are loaded before, and 60 by the standard library for these.
MOST_MODULES = 180


def loaded_modules(statement: str) -> list[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    "statement", ["import hone", "from hone import Client, FineTuneJob, InferenceService, HoneError, Progress, Report"]
)
def test_importing_the_client_loads_few_modules(statement: str) -> None:
    found = loaded_modules(statement)
    assert HEAVY & set(found) == set()
    assert len(found) < MOST_MODULES


def test_a_client_of_this_machine_loads_neither_torch_nor_kubernetes() -> None:
    found = loaded_modules("from hone import Client; Client(local=True)")
    assert {"torch", "transformers", "kubernetes", "IPython"} & set(found) == set()


def test_every_public_name_exists() -> None:
    assert sorted(hone.__all__) == sorted(set(hone.__all__))
    for name in hone.__all__:
        assert getattr(hone, name).__name__ == name
    with pytest.raises(AttributeError, match="'Trainer'"):
        getattr(hone, "Trainer")  # noqa: B009


def test_every_error_is_a_hone_error() -> None:
    for name in ("ClientError", "InvalidSpecError", "JobFailedError"):
        assert issubclass(getattr(hone, name), hone.HoneError)
    assert str(hone.ClientError("what was found", "Do this.")) == "what was found. Do this."
