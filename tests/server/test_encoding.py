"""Long answers are encoded in pieces: the same JSON, and no piece that takes long."""

import json

import pytest
from hone_server.generation.generate import Piece
from hone_server.generation.logprobs import Told
from hone_server.http import encoding
from hone_server.http.formatting import ChatWire, CompletionWire
from hypothesis import given
from hypothesis import strategies as st

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        inner.map(lambda value: [value] * (encoding.ENTRIES + 3)),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
    ),
    max_leaves=12,
)


@pytest.fixture(autouse=True, scope="module")
def no_pause():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "PAUSE_SECONDS", 0)
        yield


@given(VALUES)
def test_the_pieces_are_what_json_has(value):
    assert encoding.encode_with_pauses(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def told(count):
    top = [(f"t{number}", -float(number), number) for number in range(20)]
    return [Told(f"é{place}", -1.5, top, place * 3) for place in range(count)]


@pytest.mark.parametrize("wire", [ChatWire(), CompletionWire()])
def test_no_piece_of_a_long_answer_is_large(wire, monkeypatch):
    sizes = []

    def encode(value):
        made = json.dumps(value, ensure_ascii=False)
        sizes.append(len(made))
        return made

    monkeypatch.setattr(encoding, "_encode", encode)
    choice = wire.choice(Piece(0, "text", 1, "length", told(3000)))
    assert json.loads(encoding.encode_with_pauses(choice)) == choice
    assert sum(sizes) > 800_000
    assert max(sizes) < 100_000


@given(
    count=st.integers(0, 40),
    most=st.integers(1, 12),
    text=st.text(max_size=130),
    finish=st.sampled_from(["stop", None]),
)
def test_a_split_piece_has_the_same_content(count, most, text, finish):
    whole = Piece(0, text, 7, finish, told(count))
    parts = whole.split(most)
    assert "".join(part.text for part in parts) == text
    assert [one for part in parts for one in part.logprobs] == whole.logprobs
    assert all(len(part.logprobs) <= most for part in parts)
    assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [finish]


def test_a_piece_without_log_probabilities_stays_one():
    assert Piece(0, "x" * 1000, 7, None).split(4) == [Piece(0, "x" * 1000, 7, None)]


def test_each_part_has_the_text_of_its_tokens():
    text = "".join(f"{place:03}" for place in range(50))
    for part in Piece(0, text, 1, None, told(50)).split(8):
        assert part.text == "".join(f"{one.offset // 3:03}" for one in part.logprobs)
