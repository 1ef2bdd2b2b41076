"""Incremental detokenization and stop strings."""

import itertools
from typing import Any

import pytest
from hone_server.generation.detokenizer import MAX_UNFINISHED_TOKENS, StopStringMatcher, StopStringSet, TextStream
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models


def byte_decoder() -> Any:
    """Return a tokenizer of single bytes, so that every character beyond ASCII takes several tokens."""
    alphabet = sorted(pre_alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pre_alphabet() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()


def tokens_of(text: Any) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = byte_decoder()
    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [tokenizer.token_to_id(character) for piece, _ in pieces for character in piece]


def run(text: Any, stops: Any = ()) -> Any:
    """Return the pieces of text for each token, and whether a stop string came."""
    stream = TextStream(byte_decoder().decode, StopStringSet(stops))
    pieces = []
    for token in tokens_of(text):
        pieces.append(stream.push(token))
        if stream.is_stopped:
            break
    pieces.append(stream.flush())
    return pieces, stream.is_stopped


@pytest.mark.parametrize("text", ["plain", "grüße, 你好 🙂!", "  spaces  \n\n", ""])
def test_pieces_make_the_text(text: str) -> None:
    pieces, stopped = run(text)
    assert "".join(pieces) == text
    assert not stopped


def test_an_unfinished_character_is_held_back_until_it_is_complete() -> None:
    pieces, _ = run("é!")
    assert pieces == ["", "é", "!", ""]


def test_an_unfinished_character_at_the_end_becomes_the_replacement_character() -> None:
    stream = TextStream(byte_decoder().decode)
    assert stream.push(tokens_of("é")[0]) == ""
    assert stream.flush() == "\ufffd"


def test_bytes_that_never_become_a_character_are_not_held_back_forever() -> None:
    lengths = []

    def decode(tokens: Any) -> Any:
        lengths.append(len(tokens))
        return byte_decoder().decode(tokens)

    stream = TextStream(decode)
    continuation = tokens_of("é")[1]
    told = "".join(stream.push(continuation) for _ in range(100))
    assert set(told) == {"\ufffd"}
    assert max(lengths) <= 2 * MAX_UNFINISHED_TOKENS + 2
    assert told + stream.flush() == "\ufffd" * 100


@pytest.mark.parametrize(
    ("text", "stops", "told"),
    [
        ("hello STOP there", ["STOP"], "hello "),
        ("one two three", ["three", "two"], "one "),
        ("aaab", ["aab"], "a"),
        ("abcabd", ["abd"], "abc"),
        ("ünïcode", ["ï"], "ün"),
        ("STOP", ["STOP"], ""),
    ],
)
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str], told: str) -> None:
    pieces, stopped = run(text, stops)
    assert "".join(pieces) == told
    assert stopped


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    pieces, _ = run("a\n\nb", ["\n\n"])
    assert pieces == ["a", "", "", ""]


def test_the_beginning_of_a_stop_string_that_does_not_come_is_sent() -> None:
    pieces, stopped = run("a\nb\n", ["\n\n"])
    assert pieces == ["a", "", "\nb", "", "\n"]
    assert not stopped


def test_an_earlier_stop_string_wins_although_it_is_completed_with_another() -> None:
    pieces, _ = run("x<end>y", ["end", "<end>"])
    assert "".join(pieces) == "x<"


FEW_LETTERS = st.text("ab\n", max_size=12)


@given(text=FEW_LETTERS, stops=st.lists(FEW_LETTERS, max_size=4), cuts=st.lists(st.integers(0, 12)))
def test_where_text_ends_does_not_depend_on_how_it_is_cut_into_pieces(text: Any, stops: Any, cuts: Any) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    strings = StopStringMatcher(StopStringSet(stops))
    told = "".join([*(strings.push(piece) for piece in pieces), strings.flush()])
    wanted = [stop for stop in stops if stop]
    ends = [end for end in range(len(text) + 1) if text[:end].endswith(tuple(wanted))] if wanted else []
    assert strings.is_found == bool(ends)
    assert told == (text[: ends[0] - max(len(s) for s in wanted if text[: ends[0]].endswith(s))] if ends else text)


@given(text=FEW_LETTERS, stops=st.lists(FEW_LETTERS, min_size=1, max_size=4))
def test_only_the_possible_beginning_of_a_stop_string_is_held_back(text: Any, stops: Any) -> None:
    strings = StopStringMatcher(StopStringSet(stops))
    told = "".join(strings.push(character) for character in text)
    if not strings.is_found:
        beginnings = {stop[:size] for stop in stops for size in range(len(stop))}
        held = next(text[place:] for place in range(len(text) + 1) if text[place:] in beginnings or place == len(text))
        assert text == told + held


BYTES = st.sampled_from([*"aé€😀".encode(), *b"b\xf0\xe2\xff"])


@given(st.lists(BYTES, max_size=12))
def test_a_token_begins_where_the_text_before_it_ends(tokens: Any) -> None:
    """Also after a character that stays broken. Only ASCII certainly begins a character."""
    stream = TextStream(lambda some: bytes(some).decode(errors="replace"))
    for place, token in enumerate(tokens):
        stream.push(token)
        if token < 128:
            assert stream.token_start == len(bytes(tokens[:place]).decode(errors="replace"))
    stream.flush()
    assert stream.decoded == len(bytes(tokens).decode(errors="replace"))
