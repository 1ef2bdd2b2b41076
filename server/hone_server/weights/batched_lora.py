"""Apply unmerged LoRA adapters: in one batch each row goes through the adapter of its own request.

Continuous batching packs the tokens of all requests into one sequence. Before each forward pass,
`LoraBatch.begin_step` gets the rows of each adapter, and the base model's linear layers read them from the batch:

    before   linear(x) [1, rows, out]
    after    linear(x), and for the rows of each adapter: + (x[rows] A^T) B^T, with A [rank, in] and B [out, rank]

    rows     0 1 2 3 | 4     | 5 6          the requests of an adapter are adjacent
    adapter  faq     | none  | legal

Prompts and single adapters are computed one adapter at a time (`PerAdapterPlan`). A few rows of several adapters are
computed in two batched products (`BatchedLoraPlan`) of [adapters, rows, in] with [adapters, in, rank] and then
[adapters, rank, out]. `convert_linears` changes the classes of the model's layers, as fused_linear.py does.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from hone_server.weights.fused_linear import FusedLinear
from hone_server.weights.layer_trace import TRACE_SHAPE, trace_linear_inputs

BASE_NUMBER = 0  # stands where an adapter's number would, for requests without one
MAX_PADDING_RATIO = 2  # a stack computes at most this many times the rows that there are

LoraWeights = dict[
    str, tuple[torch.Tensor, torch.Tensor]
]  # by layer: A (shape [rank, in]); scaled B^T (shape [rank, out])

_numbers = itertools.count(BASE_NUMBER + 1)


class LoraAdapter:
    """An adapter's weights in memory. Every loaded adapter gets its own number, even when it replaces another one."""

    def __init__(self, weights: LoraWeights) -> None:
        self.number = next(_numbers)
        self.weights = weights

    def __deepcopy__(self, memo: dict[int, Any]) -> "LoraAdapter":
        return self  # continuous batching copies the arguments of the requests that it evicts


class LoraPlan(Protocol):
    """How the adapters of one batch are computed."""

    def add_outputs(self, layer: str, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add to `out` (shape [rows, out]) the adapters' output for `x` (shape [rows, in])."""


class PerAdapterPlan:
    """Computes adapter by adapter, with two products for each; for prompts and for a single adapter."""

    def __init__(self, runs: Sequence[tuple[LoraAdapter, int, int]]) -> None:
        self._runs = [(adapter.weights, slice(start, end)) for adapter, start, end in runs]

    def add_outputs(self, layer: str, x: torch.Tensor, out: torch.Tensor) -> None:
        for weights, rows in self._runs:
            if layer in weights:
                down, up = weights[layer]
                out[rows].addmm_(x[rows] @ down.t(), up)


class StackedLora:
    """The weights of several adapters as one tensor for each layer; smaller ranks are padded with zeros.

    factors, by layer: shapes [adapters, in, rank] and [adapters, rank, out].
    """

    def __init__(self, adapters: Sequence[LoraAdapter]) -> None:
        self.adapters = tuple(adapters)
        weights = [adapter.weights for adapter in adapters]
        layers = {layer: factors for own in weights for layer, factors in own.items()}
        self.pairs = {
            layer: self._stack_pairs([own.get(layer) for own in weights], like) for layer, like in layers.items()
        }

    @staticmethod
    def _stack_pairs(
        own: list[tuple[torch.Tensor, torch.Tensor] | None], like: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rank = max(pair[0].shape[0] for pair in own if pair)
        down, up = (like[side].new_zeros(len(own), rank, like[side].shape[1]) for side in (0, 1))
        for index, factors in enumerate(own):
            if factors:
                down[index, : len(factors[0])], up[index, : len(factors[1])] = factors
        return down.transpose(1, 2), up


class BatchedLoraPlan:
    """Computes all adapters at once, for a few rows of each, with two batched products."""

    def __init__(self, stack: StackedLora, runs: Sequence[tuple[LoraAdapter, int, int]]) -> None:
        self._pairs = stack.pairs
        self._adapter_count = len(stack.adapters)
        self._first_row = runs[0][1]
        by_adapter = {adapter: range(start - self._first_row, end - self._first_row) for adapter, start, end in runs}
        rows = [by_adapter.get(adapter, range(0)) for adapter in stack.adapters]
        size = max(len(own) for own in rows)
        self._gather = self._scatter = None
        if any(len(own) < size for own in rows):
            self._gather = torch.tensor([row for own in rows for row in [*own, *[0] * (size - len(own))]])
            self._scatter = torch.tensor([place * size + i for place, own in enumerate(rows) for i in range(len(own))])

    def add_outputs(self, layer: str, x: torch.Tensor, out: torch.Tensor) -> None:
        if layer not in self._pairs:
            return
        down, up = self._pairs[layer]
        rows, adapted = x[self._first_row :], out[self._first_row :]
        if self._gather is not None:
            rows = rows.index_select(0, self._gather.to(x.device))
        added = torch.bmm(torch.bmm(rows.view(self._adapter_count, -1, x.shape[1]), down), up).view(-1, out.shape[1])
        adapted += added if self._scatter is None else added.index_select(0, self._scatter.to(x.device))


class LoraBatch:
    """The rows of each adapter in the current batch, from before a forward pass to its end."""

    def __init__(self) -> None:
        self.plan: LoraPlan | None = None
        self.stacked: StackedLora | None = None  # kept between batches, because making one copies weights

    def begin_step(self, requests: Sequence[tuple[LoraAdapter | None, int]]) -> None:
        """Plan the next batch.

        requests: its adapters in order, each with its number of rows; those of one adapter are adjacent.
        """
        runs = list(_group_rows(requests))
        if not runs:
            self.plan = None
        elif len(runs) == 1 or not self._is_worth_stacking(runs):
            self.plan = PerAdapterPlan(runs)
        else:
            self.plan = BatchedLoraPlan(self._get_stack([adapter for adapter, _, _ in runs]), runs)

    def end_step(self) -> None:
        self.plan = None

    def free_adapter(self, adapter: LoraAdapter) -> None:
        """Free an adapter that no request uses, even though the last batch's requests are still remembered."""
        adapter.weights = {}
        stack = self.stacked
        if stack and adapter in stack.adapters:
            self.stacked = None

    @staticmethod
    def _is_worth_stacking(runs: Sequence[tuple[LoraAdapter, int, int]]) -> bool:
        sizes = [end - start for _, start, end in runs]
        return len(sizes) * max(sizes) <= MAX_PADDING_RATIO * sum(sizes)

    def _get_stack(self, adapters: list[LoraAdapter]) -> StackedLora:
        """Return the current stack if it has these adapters and not many others; else make a new one."""
        stack = self.stacked
        if (
            stack is None
            or not set(adapters) <= set(stack.adapters)
            or len(stack.adapters) > MAX_PADDING_RATIO * len(adapters)
        ):
            stack = self.stacked = StackedLora(adapters)
        return stack


def _group_rows(requests: Sequence[tuple[LoraAdapter | None, int]]) -> Iterator[tuple[LoraAdapter, int, int]]:
    """Yield each adapter with its first row and the row after its last."""
    start = 0
    for adapter, group in itertools.groupby(requests, key=lambda request: request[0]):
        end = start + sum(rows for _, rows in group)
        if adapter is not None:
            yield adapter, start, end
        start = end


class LoraLinear(FusedLinear):
    """A linear layer of the base model that adds the output of the batch's adapters."""

    layer_name: str
    lora_batch: LoraBatch

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out = super().forward(input)
        plan = self.lora_batch.plan
        if plan is not None:
            plan.add_outputs(self.layer_name, input[0], out[0])
        return out


def convert_linears(model: Any) -> LoraBatch:
    """Convert the linear layers that get every token of a batch to `LoraLinear`, and return their batch.

    A trial forward pass shows which layers these are: the output layer gets only the last tokens, and an expert only
    the tokens that are routed to it. A layer is converted in place, by assigning its `__class__`, and keeps its weights
    and its place in the model.
    """
    lora_batch = LoraBatch()
    names = {layer: name for name, layer in model.named_modules() if type(layer) in (torch.nn.Linear, FusedLinear)}
    input_shapes: dict[Any, list[torch.Size]] = {}
    for layer, input in trace_linear_inputs(model, list(names)):
        input_shapes.setdefault(layer, []).append(input.shape[:-1])
    for linear in (layer for layer, shapes in input_shapes.items() if shapes == [TRACE_SHAPE]):
        linear.__class__ = LoraLinear
        linear.layer_name, linear.lora_batch = names[linear], lora_batch
    return lora_batch
