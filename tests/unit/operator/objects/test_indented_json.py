"""Manifests are written as `json.dumps` writes them, byte by byte."""

import json

from hone_operator.objects.indented_json import dump_indented
from hypothesis import given
from hypothesis import strategies as st

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


@given(JSON)
def test_indented_json_is_that_of_python(value: object) -> None:
    assert dump_indented(value) == json.dumps(value, indent=2, ensure_ascii=False)
