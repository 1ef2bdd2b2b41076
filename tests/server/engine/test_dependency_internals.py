"""The undocumented parts of dependencies are as the engine expects them, and each has one module that imports it."""

import dataclasses
import importlib
import inspect
from pathlib import Path

import hone_server
import pytest
import torch
from hone_server import torch_internals, transformers_internals
from hone_server.transformers_internals import INTERFACE, STATE_FIELDS, STEP_FIELDS, FutureRequestState, RequestState

SERVER = Path(hone_server.__file__).parent


@pytest.mark.parametrize("name", INTERFACE)
def test_methods_of_continuous_batching_have_the_expected_parameters(name: str) -> None:
    module, _, path = name.partition(":")
    owner, method = path.split(".")
    found = getattr(importlib.import_module(f"transformers.generation.continuous_batching.{module}"), owner)
    assert list(inspect.signature(vars(found)[method]).parameters)[1:] == INTERFACE[name].split()


def test_requests_of_continuous_batching_have_the_expected_attributes() -> None:
    assert {field.name for field in dataclasses.fields(RequestState)} >= STATE_FIELDS
    assert set(FutureRequestState.__slots__) == STEP_FIELDS


@pytest.mark.parametrize("name", torch_internals.SCHEMAS)
def test_operators_of_torch_have_the_expected_schemas(name: str) -> None:
    assert str(getattr(torch.ops.mkldnn, name).default._schema) == torch_internals.SCHEMAS[name]


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("transformers.generation.continuous_batching", transformers_internals),
        ("transformers.integrations.eager_paged", transformers_internals),
        ("torch.ops", torch_internals),
    ],
)
def test_one_module_imports_them(text: str, module: object) -> None:
    users = [file for file in SERVER.rglob("*.py") if text in file.read_text()]
    assert users == [Path(module.__file__)]  # type: ignore[attr-defined]
