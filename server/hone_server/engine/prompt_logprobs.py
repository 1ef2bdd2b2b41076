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

from hone_server.engine.sampler import MIN_LOGPROB, TokenLogprobs
from hone_server.transformers_internals import FutureRequestState

# Rows whose scores are in memory as float32 at the same time: 38 MB for a vocabulary of 150,000 tokens.
MAX_FLOAT32_ROWS = 64


@dataclass(eq=False)
class PromptLogprobs:
    """Log probabilities of one prompt's tokens, and of the `top_count` likeliest tokens at each position.

    The first token has none. The engine's thread fills `entries` before it sends the first token of the answer.
    """

    prompt: list[int]
    top_count: int
    entries: list[TokenLogprobs | None] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = [None] * len(self.prompt)


@dataclass(frozen=True)
class PromptSpan:
    """Rows of a step that score tokens of a prompt: row `row` is for the token at `position`, and so on."""

    logprobs: PromptLogprobs
    row: int
    position: int
    count: int


class PromptRecorder:
    """The prompts of one engine whose log probabilities are wanted, by request."""

    def __init__(self) -> None:
        self.requested: dict[str, PromptLogprobs] = {}
        self._spans: list[PromptSpan] = []

    def watch_processor(self, processor: Any) -> None:
        """Make a batch processor record, and compute prompts that are to be recorded from their beginning."""
        cache, runner = processor.cache, processor.model_runner
        search, compute = cache.search_prefix_match, runner.compute_batch

        def search_unless_requested(request_id: str, prompt: list[int]) -> int:
            return 0 if request_id in self.requested else int(search(request_id, prompt))

        def compute_and_record(model: Any, batch: dict[str, Any]) -> None:
            compute(_RecordingModel(model, self._spans) if self._spans else model, batch)

        cache.search_prefix_match = search_unless_requested
        runner.compute_batch = compute_and_record

    def begin_step(self, requests: Sequence[FutureRequestState]) -> None:
        """Note the rows to record in the next step, which has these requests in this order."""
        self._spans = []
        if not self.requested:
            return
        row = 0
        for request in requests:
            logprobs = self.requested.get(request.state.request_id)
            if logprobs is not None:
                start = request.state.position_offset - request.query_length
                # The prompt's last row is for the first token of the answer.
                count = min(request.query_length, len(logprobs.prompt) - 1 - start)
                if count > 0:
                    self._spans.append(PromptSpan(logprobs, row, start + 1, count))
            row += request.query_length


class _RecordingModel:
    """A model for one step, which writes the scores of some rows into their records."""

    def __init__(self, model: Any, spans: list[PromptSpan]) -> None:
        self._model = model
        self._spans = spans

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **batch: Any) -> Any:
        chosen_rows: torch.Tensor = batch["logits_indices"]
        rows = torch.cat([torch.arange(span.row, span.row + span.count) for span in self._spans]).to(chosen_rows.device)
        if "logits_to_keep" not in batch:
            output = self._model(**batch)
            scores = output.logits[0, rows]
        else:
            output = self._model(**{**batch, "logits_to_keep": torch.cat([chosen_rows, rows.to(chosen_rows.dtype)])})
            scores = output.logits[0, len(chosen_rows) :]
            output.logits = output.logits[:, : len(chosen_rows)]
        for span in self._spans:
            own, scores = scores[: span.count], scores[span.count :]
            write_logprobs(span, own)
        return output


def write_logprobs(span: PromptSpan, scores: torch.Tensor) -> None:
    """Write the log probabilities into the span's record. scores: shape [rows, vocab_size]."""
    tokens = span.logprobs.prompt[span.position : span.position + span.count]
    for start in range(0, span.count, MAX_FLOAT32_ROWS):
        part_tokens = tokens[start : start + MAX_FLOAT32_ROWS]
        logprobs = torch.log_softmax(scores[start : start + len(part_tokens)].float(), dim=-1).clamp(min=MIN_LOGPROB)
        chosen = logprobs.gather(1, torch.tensor(part_tokens, device=logprobs.device).unsqueeze(1)).squeeze(1).tolist()
        likeliest = torch.topk(logprobs, min(span.logprobs.top_count, logprobs.shape[1]))
        tops = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        for place, token, logprob, (others, values) in zip(
            range(span.position + start, span.position + start + len(part_tokens)),
            part_tokens,
            chosen,
            tops,
            strict=True,
        ):
            span.logprobs.entries[place] = TokenLogprobs(token, logprob, tuple(zip(others, values, strict=True)))
