"""Proof of a merge: the saved model answers as base plus adapter did before merging.

The logits of a row of tokens are computed before the merge, and again with the model loaded from the folder that was
written. The two can only differ by the rounding of merged weights. Every other fault (layers that share a tensor, a
configuration that loads another model, weights that were not saved) makes the difference many times as large.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hone_api.reasons import MERGE_MISMATCH, HoneError
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hone_trainer.models.weight_files import LOAD_ERRORS

# Of the row. A mixture of experts sends a token to other experts when a weight is rounded; the median of the tokens is
# not changed by a few of those.
TOKENS = 24

# Rounding makes a relative error of up to half an epsilon in each weight, which the layers add up. Measured on models
# of 2 to 30 layers and 15 architectures, the logits then differ by 0.3 to 3 epsilons.
EPSILONS = 16

# In float32 the order of additions matters more than an epsilon, most of all between a GPU and a CPU.
SMALLEST_TOLERANCE = 1e-3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """The answer of base plus adapter to a row of tokens: logits in float32, one vector per token."""

    tokens: torch.Tensor
    logits: torch.Tensor
    tolerance: float

    def check(self, folder: Path, trust_remote_code: bool) -> str | None:
        """Compare the model in a folder; if it can't compute here, return the reason.

        Raises HoneError MergeMismatch when it answers differently, or can't be loaded.
        """
        try:
            merged = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=trust_remote_code)
        except LOAD_ERRORS as error:
            raise HoneError(MERGE_MISMATCH, f"The merged model can't be loaded: {_flatten_error(error)}") from error
        try:
            found = compute_logits(merged, self.tokens)
        except Exception as error:
            return _describe_failure(error)
        difference = measure_distance(found, self.logits)
        log.info("merged, the logits differ by %.2g, and %.2g is allowed", difference, self.tolerance)
        if difference <= self.tolerance:  # also False for NaN
            return None
        raise HoneError(
            MERGE_MISMATCH,
            f"The logits of the merged model differ from those of base plus adapter by {difference:.2g} (relative, the "
            f"median of {self.tokens.numel()} tokens), and rounding explains {self.tolerance:.2g} at most",
        )


def compare_with(adapted: PeftModel) -> Comparison | str:
    """Compute the logits of a model whose adapter is not merged yet; return a sentence when it can't compute here."""
    base: Any = adapted.get_base_model()
    config = base.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or TOKENS
    tokens = torch.linspace(0, config.vocab_size - 1, min(TOKENS, longest)).long()[None]
    kinds = {parameter.dtype for parameter in adapted.parameters() if parameter.is_floating_point()}
    epsilon = max(torch.finfo(kind).eps for kind in kinds)
    try:
        logits = compute_logits(adapted, tokens)
    except Exception as error:
        return _describe_failure(error)
    if not logits.isfinite().all():
        return "The merged model was not compared with base plus adapter, whose logits are not finite"
    return Comparison(tokens, logits, max(SMALLEST_TOLERANCE, EPSILONS * epsilon))


def measure_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the median over tokens of the relative difference. A constant in all logits of a token is ignored."""
    found, expected = (logits - logits.mean(-1, keepdim=True) for logits in (found, expected))
    sizes = expected.norm(dim=-1)
    compared = sizes > 0  # a padding token may have a vector of zeros
    return float(((found - expected).norm(dim=-1)[compared] / sizes[compared]).median())


def compute_logits(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Compute one row's logits in float32, by the class's own forward: an instance's may use mixed precision."""
    network.eval()
    with torch.no_grad():
        found = type(network).forward(network, input_ids=tokens.to(network.device))
    logits: torch.Tensor = found.logits[0]
    return logits.float().cpu()


def _describe_failure(error: Exception) -> str:
    return f"The merged model was not compared with base plus adapter: {type(error).__name__} {_flatten_error(error)}"


def _flatten_error(error: Exception) -> str:
    return " ".join(str(error).split())
