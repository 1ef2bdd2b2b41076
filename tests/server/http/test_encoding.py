"""Long answers are encoded in pieces: the same JSON, and no piece that takes long."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hone_server.generation.generate import OutputChunk
from hone_server.generation.logprobs import DecodedLogprobs
from hone_server.http import encoding
from hone_server.http.formatting import ChatFormatter, CompletionFormatter
from hypothesis import given
from hypothesis import strategies as st

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        inner.map(lambda value: [value] * (encoding.MAX_ENTRIES + 3)),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
    ),
    max_leaves=12,
)


@pytest.fixture(autouse=True, scope="module")
def no_pause() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "PAUSE_SECONDS", 0)
        yield


@given(VALUES)
def test_the_pieces_are_what_json_has(value: Any) -> None:
    assert encoding.encode_with_pauses(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def make_logprobs(count: Any) -> Any:
    top = [(f"t{number}", -float(number), number) for number in range(20)]
    return [DecodedLogprobs(f"é{place}", -1.5, top, place * 3) for place in range(count)]


@pytest.mark.parametrize("wire", [ChatFormatter(), CompletionFormatter()])
def test_no_piece_of_a_long_answer_is_large(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def encode(value: Any) -> Any:
        made = json.dumps(value, ensure_ascii=False)
        sizes.append(len(made))
        return made

    monkeypatch.setattr(encoding, "_encode", encode)
    choice = wire.format_choice(OutputChunk(0, "text", 1, "length", make_logprobs(3000)))
    assert json.loads(encoding.encode_with_pauses(choice)) == choice
    assert sum(sizes) > 800_000
    assert max(sizes) < 100_000


@given(
    count=st.integers(0, 40),
    most=st.integers(1, 12),
    text=st.text(max_size=130),
    finish=st.sampled_from(["stop", None]),
)
def test_a_split_piece_has_the_same_content(count: Any, most: Any, text: Any, finish: Any) -> None:
    whole = OutputChunk(0, text, 7, finish, make_logprobs(count))
    parts = whole.split_logprobs(most)
    assert "".join(part.text for part in parts) == text
    assert [one for part in parts for one in part.logprobs] == whole.logprobs
    assert all(len(part.logprobs) <= most for part in parts)
    assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [finish]


def test_a_piece_without_log_probabilities_stays_one() -> None:
    assert OutputChunk(0, "x" * 1000, 7, None).split_logprobs(4) == [OutputChunk(0, "x" * 1000, 7, None)]


def test_each_part_has_the_text_of_its_tokens() -> None:
    text = "".join(f"{place:03}" for place in range(50))
    for part in OutputChunk(0, text, 1, None, make_logprobs(50)).split_logprobs(8):
        assert part.text == "".join(f"{one.text_offset // 3:03}" for one in part.logprobs)
