"""Any file is read as objects of JSON's types, or refused in one sentence; none ends in a traceback."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_manifests import GOOD
from hone_api.reasons import HoneError
from hone_api.schema.manifests import load_documents
from hone_cli.commands import validate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PIECES = [
    *("a", "1", "~", "<<", "=", "yes", "0o8", "1e9", "2024-01-01", ".inf", "'", '"', "|", ">", "---", "..."),
    *("\n", "\n  ", " ", "\t", ": ", "- ", "? ", ", ", "[", "]", "{", "}", "#", "%YAML 1.1", "\r", "\ufeff", "\x1b"),
    *("&x ", "*x", "!!int ", "!!map ", "!!binary ", "!a ", "!!merge ", "!!null ", "kind: ", "metadata: ", "\\ud83d"),
]
yaml_like = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


changes = st.sampled_from([(kind, path) for kind in GOOD for path in places(GOOD[kind])])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "job.yaml"


def check(file: Path) -> None:
    try:
        documents = load_documents(file)
    except HoneError as error:
        error.format_message().encode()
        documents = []
    json.dumps(documents, allow_nan=False, ensure_ascii=False).encode()
    validate.check_file(file)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(yaml_like | st.text(max_size=30))
def test_any_text(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    check(file)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40))
def test_any_bytes(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    check(file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes, odd_values)
def test_any_value_in_any_field(file: Path, change: tuple[str, tuple[Any, ...]], value: Any) -> None:
    kind, path = change
    file.write_text(json.dumps(replaced(GOOD[kind], path, value)))
    check(file)
