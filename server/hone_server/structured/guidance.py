"""Guided decoding: allow only the tokens with which an answer keeps the structure that its request requires.

`grammars` makes the grammar of a request. `trial_pool` tries it in a process that may crash. A grammar that passes is
compiled here by llguidance, in a thread; slow ones have a lane of their own, as their trials have. A Guide follows one
answer through it, and the sampler (engine/sampler.py) asks it at every token which tokens are allowed. A mask takes
some 10 microseconds. Requests without a grammar don't use this module.
"""

import asyncio
import hashlib
import json
import re
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from transformers import PreTrainedTokenizerFast

from hone_server.protocol.errors import RETRY_SECONDS, ApiError
from hone_server.structured.fair_turns import FairTurns
from hone_server.structured.trial_pool import GrammarTrials, raise_for_verdict
from hone_server.structured.vocabulary import PARSER_LIMITS, make_tokenizer

# A trial lasts at most 5 seconds, and others can be before it.
COMPILE_SECONDS = 20.0
MAX_QUICK_COMPILERS = 2
MAX_SLOW_COMPILERS = 1
MESSAGE_CHARACTERS = 500
# Size of one number of a mask.
MASK_BITS = 32

_pool = ThreadPoolExecutor(MAX_QUICK_COMPILERS + MAX_SLOW_COMPILERS, thread_name_prefix="guidance")
_quick_turns = FairTurns[object](MAX_QUICK_COMPILERS)
_slow_turns = FairTurns[object](MAX_SLOW_COMPILERS)


class Guide:
    """Follows one answer through its grammar. `error`: why it can't follow further; the answer ends then."""

    def __init__(self, matcher: LLMatcher, prompt_length: int, eos_token_ids: frozenset[int], size: int = 0) -> None:
        """Start before the first token. size: how many tokens the matcher knows, which may exceed the model's."""
        self._full_mask = np.empty(-(-size // MASK_BITS), np.uint32)
        self.error: str | None = None
        self._matcher = matcher
        self._prompt_length = prompt_length
        self._eos_token_ids = eos_token_ids
        self._consumed_count = 0

    def fill_bitmask(self, mask: np.ndarray, before: list[int], generated: list[int]) -> None:
        """Write one bit for each token, 1 if it may come next, into `mask` (uint32, shape [ceil(vocab_size / 32)]).

        before, generated: the tokens of prompt and answer; an eviction moves those of the answer to `before`.
        """
        new = len(before) + len(generated) - self._prompt_length - self._consumed_count
        if new and self.error is None:
            tokens = generated[-new:] if new <= len(generated) else (before + generated)[-new:]
            if not self._matcher.consume_tokens(tokens):
                self.error = shorten_message(self._matcher.get_error())
            self._consumed_count += new
        if self.error is None:
            full_mask = self._full_mask if len(self._full_mask) > len(mask) else mask
            self._matcher.unsafe_compute_mask_ptr(full_mask.ctypes.data, full_mask.nbytes)
            mask[:] = full_mask[: len(mask)]
            if self._matcher.is_error():
                self.error = shorten_message(self._matcher.get_error())
        if self.error is not None:
            mask[:] = 0
            for token in self._eos_token_ids:
                mask[token // MASK_BITS] |= np.uint32(1 << token % MASK_BITS)


class GrammarCompiler:
    """Compiles grammars for one vocabulary."""

    def __init__(self, tokenizer: Any, eos_token_ids: frozenset[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        added = tokenizer.get_added_vocab().values()
        self._vocab_size = max(vocab_size, len(tokenizer), 1 + max(added, default=0))

    async def make_guides(
        self,
        grammars: Sequence[dict[str, Any]],
        owners: Sequence[str | None],
        prompt_lengths: list[int],
        param: str,
        client: str,
    ) -> list[Guide]:
        """Return a guide for each answer.

        owners: for each part of the grammar, which schema it has. client: its address; clients take turns. Raises
        ApiError: 400 for a grammar that can't be compiled, 503 for one that takes too long.
        """
        if not isinstance(self._tokenizer, PreTrainedTokenizerFast) or not self._eos_token_ids:
            message = f"{param} needs a model with a fast tokenizer and an end-of-text token, which this one has not"
            raise ApiError(400, message, param=param)
        try:
            matcher = await asyncio.wait_for(self._make_matcher(grammars, owners, param, client), COMPILE_SECONDS)
        except TimeoutError:
            message = f"{param} was not compiled within {COMPILE_SECONDS:.0f} s; try again, or simplify its schema"
            raise ApiError(503, message, param=param, headers={"Retry-After": str(RETRY_SECONDS)}) from None
        if matcher.is_error():
            text = shorten_message(matcher.get_error())
            raise ApiError(400, f"{param} has a schema that can't be enforced: {text}", param=param)
        matchers = [matcher, *(matcher.deep_copy() for _ in prompt_lengths[1:])]
        pairs = zip(matchers, prompt_lengths, strict=True)
        return [Guide(one, length, self._eos_token_ids, self._vocab_size) for one, length in pairs]

    async def _make_matcher(
        self, grammars: Sequence[dict[str, Any]], owners: Sequence[str | None], param: str, client: str
    ) -> LLMatcher:
        """Return the matcher of a grammar that passed its trial. Raises ApiError."""
        loop = asyncio.get_running_loop()
        vocabulary = self._get_cached_vocabulary()
        if vocabulary is None:
            vocabulary = await loop.run_in_executor(_pool, self._get_vocabulary)
        verdict = await vocabulary.trials.get_verdict(grammars, owners, client)
        raise_for_verdict(verdict, param)
        grammar = verdict.grammar or json.dumps({"grammars": grammars})

        async def compile_in_thread() -> LLMatcher:
            return await loop.run_in_executor(_pool, _compile_matcher, vocabulary.tokenizer, grammar)

        turns = _slow_turns if verdict.is_slow else _quick_turns
        return await turns.run_shielded(object(), client, compile_in_thread)

    def _get_cached_vocabulary(self) -> "Vocabulary | None":
        return _VOCABULARIES.get(self._tokenizer, {}).get((self._eos_token_ids, self._vocab_size))

    def _get_vocabulary(self) -> "Vocabulary":
        """Return the library's own tokenizer, made at the first request (0.6 s for 49,152 tokens)."""
        with _VOCABULARY_LOCK:
            if (known := self._get_cached_vocabulary()) is not None:
                return known
            backend = copy(self._tokenizer.backend_tokenizer)
            backend.no_padding()
            backend.no_truncation()
            made = _make_vocabulary(backend.to_str(), self._vocab_size, sorted(self._eos_token_ids))
            _VOCABULARIES.setdefault(self._tokenizer, {})[self._eos_token_ids, self._vocab_size] = made
            return made


class Vocabulary:
    """What all requests with one tokenizer share; adapters with their base's tokenizer use the same one."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.tokenizer = make_tokenizer(**parts)
        self.trials = GrammarTrials(parts)
        weakref.finalize(self, self.trials.close)


_VOCABULARIES: weakref.WeakKeyDictionary[Any, dict[tuple[frozenset[int], int], Vocabulary]] = (
    weakref.WeakKeyDictionary()
)
_VOCABULARIES_BY_DIGEST: weakref.WeakValueDictionary[str, Vocabulary] = weakref.WeakValueDictionary()
_VOCABULARY_LOCK = threading.Lock()


def _make_vocabulary(tokenizer: str, vocab_size: int, eos_token_ids: list[int]) -> Vocabulary:
    """Return the vocabulary for these parts; equal parts share one."""
    parts = {"tokenizer": tokenizer, "vocab_size": vocab_size, "eos_token_ids": eos_token_ids}
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if (known := _VOCABULARIES_BY_DIGEST.get(digest)) is None:
        known = _VOCABULARIES_BY_DIGEST[digest] = Vocabulary(parts)
    return known


def _compile_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Return the matcher after its first mask, which takes longer than all others."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=PARSER_LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


def mask_forbidden_tokens(scores: torch.Tensor, guides: Sequence[tuple[int, Guide, list[int], list[int]]]) -> None:
    """Set the scores (shape [requests, vocab_size]) of forbidden tokens to minus infinity, in place.

    guides: a row of the scores, its guide, and the tokens of prompt and answer, as for `Guide.fill_bitmask`.
    """
    vocab_size = scores.shape[1]
    masks = np.empty((len(guides), -(-vocab_size // MASK_BITS)), np.uint32)
    for mask, (_, guide, before, generated) in zip(masks, guides, strict=True):
        guide.fill_bitmask(mask, before, generated)
    forbidden = np.unpackbits(~masks.view(np.uint8), axis=1, count=vocab_size, bitorder="little").view(bool)
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        # torch would wait for all its threads in each row, which takes milliseconds where others use the cores.
        for (row, *_), tokens in zip(guides, forbidden, strict=True):
            np.putmask(scores[row].numpy(), tokens, -np.inf)
        return
    on_device = torch.from_numpy(forbidden).to(scores.device)
    for place, (row, *_) in enumerate(guides):
        scores[row].masked_fill_(on_device[place], -torch.inf)


def shorten_message(text: str) -> str:
    """Return the library's message in one line, without the state that it may append."""
    message = re.split(r"<(?:state|backtrace)>", text)[0]
    return " ".join(message.split())[:MESSAGE_CHARACTERS] or "no reason was given"
