"""The tokens that begin and end a row: generation must stop at the end of an answer, and each token occurs once.

Input is all tokenized rows, of which a few tokens each are kept (`RowEnds`); output is findings for `tokenized`, with
the field to set. A model that never learns the end token writes until the limit of tokens.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hone_trainer.checks.findings import Finding, make_findings
from hone_trainer.data.statistics import IGNORED, RowTokens, iterate_tokens

# In place of a token that a row does not have.
NONE = -1
# Tokens of whitespace after the end token that are skipped at most.
MOST_SPACES = 32


@dataclass(frozen=True)
class RowEnds:
    """For each row: its first two tokens, its last two and its last learned one, whitespace at the end left out.

    Memory: 20 bytes a row.
    """

    first: np.ndarray
    second: np.ndarray
    before_last: np.ndarray
    last: np.ndarray
    last_learned: np.ndarray


class WhitespaceTokens:
    """The tokens that are whitespace; each is decoded once, when a row ends with it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._cache: dict[int, bool] = {}

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return for each token whether it is whitespace."""
        unique, inverse = np.unique(ids, return_inverse=True)
        return np.array([self._is_space(int(token)) for token in unique], bool)[inverse.reshape(-1)]

    def _is_space(self, token: int) -> bool:
        if token not in self._cache:
            self._cache[token] = token not in self._special and not str(self._tokenizer.decode([token])).strip()
        return self._cache[token]


def read_ends(whole: Dataset, tokenizer: PreTrainedTokenizerBase) -> RowEnds:
    """Read the ends of every row."""
    spaces = WhitespaceTokens(tokenizer)
    return RowEnds(
        *map(np.concatenate, zip(*(_read_ends(batch, spaces) for batch in iterate_tokens(whole)), strict=True))
    )


def find_missing_ends(
    ends: RowEnds, checked: np.ndarray, stops: set[int], tokenizer: PreTrainedTokenizerBase
) -> list[Finding]:
    """Return the rows among `checked` whose answer ends with no token at which generation stops (`stops`)."""
    missing = checked & (ends.last_learned != NONE) & ~np.isin(ends.last_learned, list(stops))
    rows = np.flatnonzero(missing)
    if not len(rows):
        return []
    usual = Counter(ends.last_learned[rows].tolist()).most_common(1)[0][0]
    names = " or ".join(repr(tokenizer.decode([token])) for token in sorted(stops))
    added = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    if usual in added:
        token = tokenizer.decode([usual])
        remedy = (
            f"they end with {token!r}, and generation stops at {names}: when {token!r} ends an answer, "
            f"set spec.training.eosToken: {token!r}"
        )
    else:
        remedy = f"end the assistant's turns with {names} in spec.dataset.chatTemplate"
    return make_findings(rows.tolist(), f"do not teach the model to stop: {remedy}")


def find_doubled(
    ends: RowEnds, checked: np.ndarray, stops: set[int], tokenizer: PreTrainedTokenizerBase
) -> list[Finding]:
    """Return the rows that begin with two BOS tokens, or that end (among `checked`) with two end tokens."""
    found = []
    alone = tokenizer("a")["input_ids"]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None and (begin != end or alone[0] == begin):
        rows = np.flatnonzero((ends.first == begin) & (ends.second == begin))
        text = f"begin with {tokenizer.bos_token!r} twice: the tokenizer adds it, so leave it out of the rows"
        found += make_findings(rows.tolist(), text)
    doubled = checked & (ends.last == ends.before_last) & np.isin(ends.last, list(stops))
    rows = np.flatnonzero(doubled)
    if len(rows):
        name = tokenizer.decode([int(ends.last[rows[0]])])
        cause = "the rows already end with it, and one is added: leave it out of the rows"
        if adds_end(tokenizer):
            cause = "the tokenizer adds it, too: set add_eos_token to false in its tokenizer_config.json"
        found += make_findings(rows.tolist(), f"end with {name!r} twice: {cause}")
    return found


def adds_end(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer ends every text with its end token."""
    return tokenizer.eos_token_id is not None and tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]


def _read_ends(batch: RowTokens, spaces: WhitespaceTokens) -> tuple[np.ndarray, ...]:
    starts, ends = batch.offsets[:-1].astype(np.int64), batch.offsets[1:].astype(np.int64)
    everywhere = np.arange(len(batch.ids))
    last = _step_back(batch.ids, everywhere, starts, ends, spaces)
    before_last = _step_back(batch.ids, everywhere, starts, np.maximum(last, starts), spaces)
    learned = np.flatnonzero(batch.labels != IGNORED)
    bounds = np.searchsorted(learned, starts), np.searchsorted(learned, ends)
    last_learned = _step_back(batch.ids, learned, *bounds, spaces)
    return (
        _take_existing(batch.ids, starts, starts < ends),
        _take_existing(batch.ids, starts + 1, starts + 1 < ends),
        _take_existing(batch.ids, before_last, before_last >= starts),
        _take_existing(batch.ids, last, last >= starts),
        _take_existing(batch.ids[learned], last_learned, last_learned >= bounds[0]),
    )


def _step_back(
    ids: np.ndarray, positions: np.ndarray, starts: np.ndarray, ends: np.ndarray, spaces: WhitespaceTokens
) -> np.ndarray:
    """Return for each row the index in `positions` of its last token that is not whitespace; below `starts`: none.

    A row's tokens are at `positions[start:end]`.
    """
    found = ends - 1
    for _ in range(MOST_SPACES):
        inside = np.flatnonzero(found >= starts)
        stepped = inside[spaces.find(ids[positions[found[inside]]])] if len(inside) else inside
        if not len(stepped):
            break
        found[stepped] -= 1
    return found


def _take_existing(ids: np.ndarray, indices: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """Return `ids[indices]`, and NONE where no such token exists."""
    found = np.full(len(indices), NONE, np.int32)
    found[exists] = ids[indices[exists]]
    return found
