"""Choose the next token of every request in a batch, each by its own settings and its own seed.

In: the logits of a step. Out: scores whose argmax is the sampled token. Per request: penalties (penalties.py), the mask
of a grammar (structured/guidance.py), temperature, top-k, top-p and noise. The log probabilities that a request wants
are recorded from the logits before all of these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList

from hone_server.engine.penalties import NO_PENALTIES, Penalties, apply_penalties
from hone_server.structured.guidance import Guide, mask_forbidden_tokens
from hone_server.transformers_internals import (
    ContinuousBatchingLogitsProcessorList,
    FutureRequestState,
    RequestState,
)
from hone_server.weights.batched_lora import LoraBatch

# Below this the choice is greedy, as in vLLM: scores divided by it would exceed float32.
MIN_TEMPERATURE = 1e-5
MIN_LOGPROB = -9999.0  # JSON has no infinity; vLLM reports the same number


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are chosen.

    temperature: greedy below MIN_TEMPERATURE. top_p: 1 is off. top_k: 0 is off. seed: 64 bits; the same request with
    the same seed draws the same noise for the same position, independent of the other requests in the batch.
    top_logprobs: how many of the likeliest tokens to report with each chosen one; None: no log probabilities.
    """

    temperature: float
    top_p: float
    top_k: int
    seed: int
    penalties: Penalties = NO_PENALTIES
    top_logprobs: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE


@dataclass(frozen=True)
class TokenLogprobs:
    """A chosen token, and the likeliest ones at its position.

    The log probabilities are of the model's own distribution, as in vLLM: before penalties, temperature, top-k and
    top-p.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def draw_token_noise(seed: int, position: int, vocab_size: int) -> np.ndarray:
    """Return exponential noise (float32, shape [vocab_size], above 0) that depends only on the seed and the position.

    The position is the most significant part of Philox's counter. The least significant part counts the blocks that are
    drawn: with the position there, the noise of one position would reappear at the next one, a few tokens further on.
    The draws have 53 bits: of those with 23 bits, one in 8 million is 0, which chooses its token however unlikely it
    is.
    """
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, position]))
    noise = generator.standard_exponential(vocab_size).astype(np.float32)
    return np.maximum(noise, np.finfo(np.float32).tiny, out=noise)


def compute_gumbel_scores(
    logits: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]
) -> torch.Tensor:
    """Return scores (shape [requests, vocab_size], as the logits) whose argmax is a sample of each row's distribution.

    The distribution is softmax(logits / temperature) after top-k and top-p. No sampling may be greedy. Dividing
    probabilities by exponential noise is the Gumbel-max trick. It needs no shared random state, and the choice stays
    the same when the logits differ in their last bits, as they do when the batch is composed differently.
    """
    temperatures = torch.tensor([own.temperature for own in params], device=logits.device)
    scores = logits / temperatures.unsqueeze(1)
    for row, own in enumerate(params):
        if 0 < own.top_k < scores.shape[1]:
            smallest = torch.topk(scores[row], own.top_k).values[-1]
            scores[row].masked_fill_(scores[row] < smallest, -torch.inf)
    probabilities = torch.softmax(scores, dim=-1)
    for row, own in enumerate(params):
        if own.top_p < 1:
            ordered = torch.sort(probabilities[row], descending=True).values
            kept_count = int((torch.cumsum(ordered, dim=-1) < own.top_p).sum())
            smallest = ordered[min(kept_count, ordered.numel() - 1)]
            probabilities[row].masked_fill_(probabilities[row] < smallest, 0.0)
    noise = [
        draw_token_noise(own.seed, position, logits.shape[1]) for own, position in zip(params, positions, strict=True)
    ]
    return probabilities / torch.from_numpy(np.stack(noise)).to(logits.device)


class BatchSampler(ContinuousBatchingLogitsProcessorList):
    """The logits processor of continuous batching; the argmax that follows it picks the sampled token.

    transformers' own processors share one random state between all requests, so a seed would have no effect. Needs the
    synchronous loop (no CUDA graphs, no double buffering), because the batch's requests are remembered between calls.
    """

    def __init__(self, lora_batch: LoraBatch | None = None) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._lora_batch = lora_batch
        self._states: list[RequestState] = []
        # By request, for those that want them. Not in the request's own arguments: an eviction makes copies of those.
        self.logprobs: dict[str, list[TokenLogprobs]] = {}
        self.guides: dict[str, Guide] = {}
        self.step_hooks: Sequence[Callable[[list[FutureRequestState]], None]] = ()
        """Called with the requests of each step before it."""
        self.score_hook: Callable[[torch.Tensor], None] = lambda scores: None
        """Called with the scores of the step, before anything changes them."""

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        if set(kwargs) != {"sampling", "adapter"}:
            raise ValueError(
                f"a request takes exactly the extra arguments 'sampling' and 'adapter', not {sorted(kwargs)}"
            )

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        self._states = [request.state for request in requests_in_batch if request.has_new_token]
        for begin_step in self.step_hooks:
            begin_step(requests_in_batch)
        if self._lora_batch is not None:
            self._lora_batch.begin_step(
                [
                    (request.state.logit_processor_kwargs["adapter"], request.query_length)
                    for request in requests_in_batch
                ]
            )
        return arg_storage

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: Any) -> torch.Tensor:
        if self._lora_batch is not None:
            self._lora_batch.end_step()
        self.score_hook(scores)
        params: list[SamplingParams] = [state.logit_processor_kwargs["sampling"] for state in self._states]
        raw = {row: scores[row].clone() for row, own in enumerate(params) if own.top_logprobs is not None}
        for row, own in enumerate(params):
            if own.penalties != NO_PENALTIES:
                apply_penalties(scores[row], own.penalties, *_split_prompt_and_answer(self._states[row]))
        if self.guides:
            self._mask_forbidden(scores)
        rows = [row for row, own in enumerate(params) if not own.is_greedy]
        if rows:
            # The sum stays the same when the scheduler evicts a request and later feeds it its own tokens again.
            positions = [
                len(state.initial_tokens) + len(state.generated_tokens) for state in (self._states[row] for row in rows)
            ]
            scores[rows] = compute_gumbel_scores(scores[rows], [params[row] for row in rows], positions)
        for row, logits in raw.items():
            recorded = self.logprobs.get(self._states[row].request_id)
            if recorded is not None:
                recorded.append(_make_token_logprobs(logits, int(scores[row].argmax()), params[row].top_logprobs or 0))
        return scores

    def _mask_forbidden(self, scores: torch.Tensor) -> None:
        """Mask the tokens that the guides of requests don't allow."""
        guided = [
            (row, guide, state.initial_tokens, state.generated_tokens)
            for row, state in enumerate(self._states)
            if (guide := self.guides.get(state.request_id)) is not None
        ]
        if guided:
            mask_forbidden_tokens(scores, guided)


def _split_prompt_and_answer(state: RequestState) -> tuple[list[int], list[int]]:
    """Return the tokens of the prompt, and those of the answer so far.

    After an eviction, transformers keeps the answer's tokens together with the prompt's.
    """
    prompt = state._true_initial_tokens or len(state.initial_tokens)
    return state.initial_tokens[:prompt], state.initial_tokens[prompt:] + state.generated_tokens


def _make_token_logprobs(logits: torch.Tensor, token: int, top: int) -> TokenLogprobs:
    logprobs = torch.log_softmax(logits, dim=-1).clamp(min=MIN_LOGPROB)
    likeliest = torch.topk(logprobs, min(top, logprobs.numel()))
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return TokenLogprobs(token, float(logprobs[token]), tuple(pairs))
