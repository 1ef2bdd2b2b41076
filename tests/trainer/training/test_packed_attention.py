"""Rows that are packed into one, without FlashAttention: the statements of docs/performance.md about masks."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import LlamaConfig, LlamaForCausalLM

LENGTHS = (5, 9, 17, 30)


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, attn_implementation="sdpa"))


def train(model: LlamaForCausalLM, batches: list[list[torch.Tensor]]) -> tuple[float, list[torch.Tensor]]:
    """Return the loss of all tokens, and gradients; the rows of a batch are packed into one."""
    loss = torch.zeros(())
    for rows in batches:
        positions = torch.cat([torch.arange(len(row)) for row in rows])
        logits = model(input_ids=torch.cat(rows)[None], position_ids=positions[None], use_cache=False).logits[0]
        for row, of_row in zip(rows, logits.split([len(row) for row in rows]), strict=True):
            loss = loss + torch.nn.functional.cross_entropy(of_row[:-1], row[1:], reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), [weight.grad for weight in model.parameters() if weight.grad is not None]


def test_rows_packed_with_a_mask_train_as_they_do_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 97, (length,), generator=generator) for length in LENGTHS]
    alone, gradients = train(make_model(), [[row] for row in rows])
    packed, of_packed = train(make_model(), [rows])
    assert packed == pytest.approx(alone, rel=1e-6)
    for one, other in zip(gradients, of_packed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_flex_attention_can_not_be_compared_on_a_cpu() -> None:
    """Fail when this becomes possible: compare it with unpacked rows as above, and consider it for the profile."""
    query = torch.zeros(1, 1, 8, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        flex_attention(query, query, query)
