"""Choosing the next token of every request in a batch, each by its own settings and its own seed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen.

    temperature: 0 is greedy. top_p: 1 is off. top_k: 0 is off. seed: 64 bits; the same request with the same seed
    draws the same noise for the same position, whatever runs beside it.
    """

    temperature: float
    top_p: float
    top_k: int
    seed: int


def token_noise(seed: int, position: int, vocab_size: int) -> torch.Tensor:
    """Exponential noise (float32, shape [vocab_size]) that only the seed and the token's position decide."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=position))
    noise = generator.standard_exponential(vocab_size, dtype=np.float32)
    return torch.from_numpy(np.maximum(noise, np.finfo(np.float32).tiny))


def perturb(logits: torch.Tensor, sampling: Sampling, position: int) -> torch.Tensor:
    """Scores (shape [vocab_size]) whose argmax is a sample of softmax(logits / temperature) after top-k and top-p.

    Dividing probabilities by exponential noise is the Gumbel-max trick. Beside needing no shared random state, it keeps
    the choice steady when the logits differ in their last bits, as they do when the batch is composed differently.
    """
    scores = logits / sampling.temperature
    if 0 < sampling.top_k < scores.numel():
        scores = scores.masked_fill(scores < torch.topk(scores, sampling.top_k).values[-1], -torch.inf)
    probabilities = torch.softmax(scores, dim=-1)
    if sampling.top_p < 1:
        ordered = torch.sort(probabilities, descending=True).values
        kept = int((torch.cumsum(ordered, dim=-1) < sampling.top_p).sum())
        smallest = ordered[min(kept, ordered.numel() - 1)]
        probabilities = probabilities.masked_fill(probabilities < smallest, 0.0)
    noise = token_noise(sampling.seed, position, probabilities.numel())
    return probabilities / noise.to(probabilities.device)


class BatchSampler(ContinuousBatchingLogitsProcessorList):
    """Stands where continuous batching has its logits processors; the argmax that follows picks the sampled token.

    Its own processors share one random state between all requests, so that a seed would mean nothing. Needs the
    synchronous loop (no CUDA graphs, no double buffering), because the batch's requests are remembered between calls.
    """

    def __init__(self) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._states: list[RequestState] = []

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        if set(kwargs) != {"sampling"}:
            raise ValueError(f"a request takes exactly one extra argument, 'sampling', not {sorted(kwargs)}")

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        self._states = [request.state for request in requests_in_batch if request.has_new_token]
        return arg_storage

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: Any) -> torch.Tensor:
        for row, state in enumerate(self._states):
            sampling: Sampling = state.logit_processor_kwargs["sampling"]
            if sampling.temperature > 0:
                # The sum stays the same when the scheduler evicts a request and later feeds it its own tokens again.
                position = len(state.initial_tokens) + len(state.generated_tokens)
                scores[row] = perturb(scores[row], sampling, position)
        return scores
