"""Compute log probabilities of a prompt's tokens, for requests with `echo` and `logprobs`.

The engine computes scores only where a new token is chosen. For these requests it computes them at every position of
the prompt, in the steps that process the prompt anyway: `PromptRecorder` knows which rows of a step these are, and
takes their scores out of the model's output. Evaluation harnesses use them to judge how likely a given answer is.
generation/logprobs.py, which also handles those of the answer, is next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.continuous_batching.requests import FutureRequestState

from hone_server.engine.sampler import LEAST_LOGPROB, TokenLogprob

# Rows whose scores are in memory as float32 at the same time: 38 MB for a vocabulary of 150,000 tokens.
ROWS_AT_ONCE = 64


@dataclass(eq=False)
class PromptLogprobs:
    """Log probabilities of one prompt's tokens, and of the `top` likeliest tokens at each position.

    The first token has none. The engine's thread fills `tokens` before it sends the first token of the answer.
    """

    prompt: list[int]
    top: int
    tokens: list[TokenLogprob | None] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = [None] * len(self.prompt)


@dataclass(frozen=True)
class Span:
    """Rows of a step that score tokens of a prompt: row `row` is for the token at position `place`, and so on."""

    record: PromptLogprobs
    row: int
    place: int
    count: int


class PromptRecorder:
    """The prompts of one engine whose log probabilities are wanted, by request."""

    def __init__(self) -> None:
        self.wanted: dict[str, PromptLogprobs] = {}
        self._spans: list[Span] = []

    def install(self, processor: Any) -> None:
        """Make a batch processor record, and compute prompts that are to be recorded from their beginning."""
        cache, runner = processor.cache, processor.model_runner
        search, compute = cache.search_prefix_match, runner.compute_batch

        def search_unless_wanted(request_id: str, prompt: list[int]) -> int:
            return 0 if request_id in self.wanted else int(search(request_id, prompt))

        def compute_and_record(model: Any, batch: dict[str, Any]) -> None:
            compute(_Recording(model, self._spans) if self._spans else model, batch)

        cache.search_prefix_match = search_unless_wanted
        runner.compute_batch = compute_and_record

    def prepare(self, requests: Sequence[FutureRequestState]) -> None:
        """Note the rows to record in the next step, which has these requests in this order."""
        self._spans = []
        if not self.wanted:
            return
        row = 0
        for request in requests:
            record = self.wanted.get(request.state.request_id)
            if record is not None:
                start = request.state.position_offset - request.query_length
                # The prompt's last row is for the first token of the answer.
                count = min(request.query_length, len(record.prompt) - 1 - start)
                if count > 0:
                    self._spans.append(Span(record, row, start + 1, count))
            row += request.query_length


class _Recording:
    """A model for one step, which writes the scores of some rows into their records."""

    def __init__(self, model: Any, spans: list[Span]) -> None:
        self._model = model
        self._spans = spans

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **batch: Any) -> Any:
        wanted: torch.Tensor = batch["logits_indices"]
        rows = torch.cat([torch.arange(span.row, span.row + span.count) for span in self._spans]).to(wanted.device)
        if "logits_to_keep" not in batch:
            output = self._model(**batch)
            scores = output.logits[0, rows]
        else:
            output = self._model(**{**batch, "logits_to_keep": torch.cat([wanted, rows.to(wanted.dtype)])})
            scores = output.logits[0, len(wanted) :]
            output.logits = output.logits[:, : len(wanted)]
        for span in self._spans:
            own, scores = scores[: span.count], scores[span.count :]
            record(span, own)
        return output


def record(span: Span, scores: torch.Tensor) -> None:
    """Write the log probabilities into the span's record. scores: shape [rows, vocab_size]."""
    tokens = span.record.prompt[span.place : span.place + span.count]
    for start in range(0, span.count, ROWS_AT_ONCE):
        part = tokens[start : start + ROWS_AT_ONCE]
        logprobs = torch.log_softmax(scores[start : start + len(part)].float(), dim=-1).clamp(min=LEAST_LOGPROB)
        chosen = logprobs.gather(1, torch.tensor(part, device=logprobs.device).unsqueeze(1)).squeeze(1).tolist()
        likeliest = torch.topk(logprobs, min(span.record.top, logprobs.shape[1]))
        tops = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        for place, token, logprob, (others, values) in zip(
            range(span.place + start, span.place + start + len(part)), part, chosen, tops, strict=True
        ):
            span.record.tokens[place] = TokenLogprob(token, logprob, tuple(zip(others, values, strict=True)))
