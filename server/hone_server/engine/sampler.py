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
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from hone_server.engine.penalties import NO_PENALTIES, Penalties, penalize
from hone_server.structured.guidance import Guide, forbid
from hone_server.weights.batched_lora import BatchTable

# Below this the choice is greedy, as in vLLM: scores divided by it would exceed float32.
LEAST_TEMPERATURE = 1e-5
LEAST_LOGPROB = -9999.0  # JSON has no infinity; vLLM reports the same number


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen.

    temperature: greedy below LEAST_TEMPERATURE. top_p: 1 is off. top_k: 0 is off. seed: 64 bits; the same request with
    the same seed draws the same noise for the same position, independent of the other requests in the batch. logprobs:
    how many of the likeliest tokens to report with each chosen one; None: no log probabilities.
    """

    temperature: float
    top_p: float
    top_k: int
    seed: int
    penalties: Penalties = NO_PENALTIES
    logprobs: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature < LEAST_TEMPERATURE


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token, and the likeliest ones at its position.

    The log probabilities are of the model's own distribution, as in vLLM: before penalties, temperature, top-k and
    top-p.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_noise(seed: int, position: int, vocab_size: int) -> np.ndarray:
    """Return exponential noise (float32, shape [vocab_size], above 0) that depends only on the seed and the position.

    The position is the most significant part of Philox's counter. The least significant part counts the blocks that are
    drawn: with the position there, the noise of one position would reappear at the next one, a few tokens further on.
    The draws have 53 bits: of those with 23 bits, one in 8 million is 0, which chooses its token however unlikely it
    is.
    """
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, position]))
    noise = generator.standard_exponential(vocab_size).astype(np.float32)
    return np.maximum(noise, np.finfo(np.float32).tiny, out=noise)


def perturb(logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> torch.Tensor:
    """Return scores (shape [requests, vocab_size], as the logits) whose argmax is a sample of each row's distribution.

    The distribution is softmax(logits / temperature) after top-k and top-p. No sampling may be greedy. Dividing
    probabilities by exponential noise is the Gumbel-max trick. It needs no shared random state, and the choice stays
    the same when the logits differ in their last bits, as they do when the batch is composed differently.
    """
    temperatures = torch.tensor([sampling.temperature for sampling in samplings], device=logits.device)
    scores = logits / temperatures.unsqueeze(1)
    for row, sampling in enumerate(samplings):
        if 0 < sampling.top_k < scores.shape[1]:
            smallest = torch.topk(scores[row], sampling.top_k).values[-1]
            scores[row].masked_fill_(scores[row] < smallest, -torch.inf)
    probabilities = torch.softmax(scores, dim=-1)
    for row, sampling in enumerate(samplings):
        if sampling.top_p < 1:
            ordered = torch.sort(probabilities[row], descending=True).values
            kept = int((torch.cumsum(ordered, dim=-1) < sampling.top_p).sum())
            smallest = ordered[min(kept, ordered.numel() - 1)]
            probabilities[row].masked_fill_(probabilities[row] < smallest, 0.0)
    noise = [
        token_noise(sampling.seed, position, logits.shape[1])
        for sampling, position in zip(samplings, positions, strict=True)
    ]
    return probabilities / torch.from_numpy(np.stack(noise)).to(logits.device)


class BatchSampler(ContinuousBatchingLogitsProcessorList):
    """The logits processor of continuous batching; the argmax that follows it picks the sampled token.

    transformers' own processors share one random state between all requests, so a seed would have no effect. Needs the
    synchronous loop (no CUDA graphs, no double buffering), because the batch's requests are remembered between calls.
    """

    def __init__(self, table: BatchTable | None = None) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._table = table
        self._states: list[RequestState] = []
        # By request, for those that want them. Not in the request's own arguments: an eviction makes copies of those.
        self.logprobs: dict[str, list[TokenLogprob]] = {}
        self.guides: dict[str, Guide] = {}
        self.prepared: Sequence[Callable[[list[FutureRequestState]], None]] = ()
        """Called with the requests of each step before it."""
        self.scored: Callable[[torch.Tensor], None] = lambda scores: None
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
        for prepare in self.prepared:
            prepare(requests_in_batch)
        if self._table is not None:
            self._table.prepare(
                [
                    (request.state.logit_processor_kwargs["adapter"], request.query_length)
                    for request in requests_in_batch
                ]
            )
        return arg_storage

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: Any) -> torch.Tensor:
        if self._table is not None:
            self._table.clear()
        self.scored(scores)
        samplings: list[Sampling] = [state.logit_processor_kwargs["sampling"] for state in self._states]
        raw = {row: scores[row].clone() for row, sampling in enumerate(samplings) if sampling.logprobs is not None}
        for row, sampling in enumerate(samplings):
            if sampling.penalties != NO_PENALTIES:
                penalize(scores[row], sampling.penalties, *_prompt_and_answer(self._states[row]))
        if self.guides:
            self._forbid(scores)
        rows = [row for row, sampling in enumerate(samplings) if not sampling.is_greedy]
        if rows:
            # The sum stays the same when the scheduler evicts a request and later feeds it its own tokens again.
            positions = [
                len(state.initial_tokens) + len(state.generated_tokens) for state in (self._states[row] for row in rows)
            ]
            scores[rows] = perturb(scores[rows], [samplings[row] for row in rows], positions)
        for row, logits in raw.items():
            told = self.logprobs.get(self._states[row].request_id)
            if told is not None:
                told.append(_token_logprob(logits, int(scores[row].argmax()), samplings[row].logprobs or 0))
        return scores

    def _forbid(self, scores: torch.Tensor) -> None:
        """Mask the tokens that the guides of requests don't allow."""
        guided = [
            (row, guide, state.initial_tokens, state.generated_tokens)
            for row, state in enumerate(self._states)
            if (guide := self.guides.get(state.request_id)) is not None
        ]
        if guided:
            forbid(scores, guided)


def _prompt_and_answer(state: RequestState) -> tuple[list[int], list[int]]:
    """Return the tokens of the prompt, and those of the answer so far.

    After an eviction, transformers keeps the answer's tokens together with the prompt's.
    """
    prompt = state._true_initial_tokens or len(state.initial_tokens)
    return state.initial_tokens[:prompt], state.initial_tokens[prompt:] + state.generated_tokens


def _token_logprob(logits: torch.Tensor, token: int, top: int) -> TokenLogprob:
    logprobs = torch.log_softmax(logits, dim=-1).clamp(min=LEAST_LOGPROB)
    likeliest = torch.topk(logprobs, min(top, logprobs.numel()))
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return TokenLogprob(token, float(logprobs[token]), tuple(pairs))
