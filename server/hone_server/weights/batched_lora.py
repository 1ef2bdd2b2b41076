"""Apply unmerged LoRA adapters: in one packed batch each row goes through the adapter of its own request.

Continuous batching packs the tokens of all requests into one sequence. Before each forward pass, `BatchTable.prepare`
gets the rows of each adapter, and the base model's linear layers read them from the table. Prompts and single adapters
are computed one adapter at a time (`Segments`), a few rows of several adapters in one batched product (`Stacked`).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from hone_server.weights.fused_linear import JoinedLinear
from hone_server.weights.layer_trace import SHAPE, calls_of

BASE = 0  # stands where an adapter's number would, for requests without one
PADDING = 2  # a stack computes at most this many times the rows that there are

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by layer: A (shape [rank, in]); scaled B^T (shape [rank, out])

_numbers = itertools.count(BASE + 1)


class Adapter:
    """An adapter's weights in memory. Every loaded adapter gets its own number, even when it replaces another one."""

    def __init__(self, factors: Factors) -> None:
        self.number = next(_numbers)
        self.factors = factors

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapter":
        return self  # continuous batching copies the arguments of the requests that it evicts


class Plan(Protocol):
    """How the adapters of one batch are computed."""

    def add(self, layer: str, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add to `out` (shape [rows, out]) the adapters' output for `x` (shape [rows, in])."""


class Segments:
    """Computes adapter by adapter, with two products for each; for prompts and for a single adapter."""

    def __init__(self, runs: Sequence[tuple[Adapter, int, int]]) -> None:
        self._runs = [(adapter.factors, slice(start, end)) for adapter, start, end in runs]

    def add(self, layer: str, x: torch.Tensor, out: torch.Tensor) -> None:
        for factors, rows in self._runs:
            if layer in factors:
                down, up = factors[layer]
                out[rows].addmm_(x[rows] @ down.t(), up)


class Stack:
    """The weights of several adapters as one tensor for each layer; smaller ranks are padded with zeros.

    factors, by layer: shapes [adapters, in, rank] and [adapters, rank, out].
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = tuple(adapters)
        weights = [adapter.factors for adapter in adapters]
        layers = {layer: factors for own in weights for layer, factors in own.items()}
        self.factors = {
            layer: self._stacked([own.get(layer) for own in weights], like) for layer, like in layers.items()
        }

    @staticmethod
    def _stacked(
        own: list[tuple[torch.Tensor, torch.Tensor] | None], like: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rank = max(factors[0].shape[0] for factors in own if factors)
        down, up = (like[side].new_zeros(len(own), rank, like[side].shape[1]) for side in (0, 1))
        for place, factors in enumerate(own):
            if factors:
                down[place, : len(factors[0])], up[place, : len(factors[1])] = factors
        return down.transpose(1, 2), up


class Stacked:
    """Computes all adapters at once, for a few rows of each, with two batched products."""

    def __init__(self, stack: Stack, runs: Sequence[tuple[Adapter, int, int]]) -> None:
        self._factors = stack.factors
        self._groups = len(stack.adapters)
        self._first = runs[0][1]
        by_adapter = {adapter: range(start - self._first, end - self._first) for adapter, start, end in runs}
        rows = [by_adapter.get(adapter, range(0)) for adapter in stack.adapters]
        size = max(len(own) for own in rows)
        self._gather = self._scatter = None
        if any(len(own) < size for own in rows):
            self._gather = torch.tensor([row for own in rows for row in [*own, *[0] * (size - len(own))]])
            self._scatter = torch.tensor([place * size + i for place, own in enumerate(rows) for i in range(len(own))])

    def add(self, layer: str, x: torch.Tensor, out: torch.Tensor) -> None:
        if layer not in self._factors:
            return
        down, up = self._factors[layer]
        rows, told = x[self._first :], out[self._first :]
        if self._gather is not None:
            rows = rows.index_select(0, self._gather.to(x.device))
        added = torch.bmm(torch.bmm(rows.view(self._groups, -1, x.shape[1]), down), up).view(-1, out.shape[1])
        told += added if self._scatter is None else added.index_select(0, self._scatter.to(x.device))


class BatchTable:
    """The rows of each adapter in the current batch, from before a forward pass to its end."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.stack: Stack | None = None  # kept between batches, because making one copies weights

    def prepare(self, requests: Sequence[tuple[Adapter | None, int]]) -> None:
        """Plan the next batch.

        requests: its adapters in order, each with its number of rows; those of one adapter are adjacent.
        """
        runs = list(_runs(requests))
        if not runs:
            self.plan = None
        elif len(runs) == 1 or not self._few_rows(runs):
            self.plan = Segments(runs)
        else:
            self.plan = Stacked(self._stack_of([adapter for adapter, _, _ in runs]), runs)

    def clear(self) -> None:
        self.plan = None

    def forget(self, adapter: Adapter) -> None:
        """Free an adapter that no request uses, even though the last batch's requests are still remembered."""
        adapter.factors = {}
        stack = self.stack
        if stack and adapter in stack.adapters:
            self.stack = None

    @staticmethod
    def _few_rows(runs: Sequence[tuple[Adapter, int, int]]) -> bool:
        sizes = [end - start for _, start, end in runs]
        return len(sizes) * max(sizes) <= PADDING * sum(sizes)

    def _stack_of(self, adapters: list[Adapter]) -> Stack:
        """Return the current stack if it has these adapters and not many others; else make a new one."""
        stack = self.stack
        if stack is None or not set(adapters) <= set(stack.adapters) or len(stack.adapters) > PADDING * len(adapters):
            stack = self.stack = Stack(adapters)
        return stack


def _runs(requests: Sequence[tuple[Adapter | None, int]]) -> Iterator[tuple[Adapter, int, int]]:
    """Yield each adapter with its first row and the row after its last."""
    start = 0
    for adapter, group in itertools.groupby(requests, key=lambda request: request[0]):
        end = start + sum(rows for _, rows in group)
        if adapter is not None:
            yield adapter, start, end
        start = end


class AdaptableLinear(JoinedLinear):
    """A linear layer of the base model that adds the output of the batch's adapters."""

    layer: str
    table: BatchTable

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out = super().forward(input)
        plan = self.table.plan
        if plan is not None:
            plan.add(self.layer, input[0], out[0])
        return out


def make_adaptable(model: Any) -> BatchTable:
    """Convert the linear layers that get every token of a batch to `AdaptableLinear`, and return their table.

    A trial forward pass shows which layers these are: the output layer gets only the last tokens, and an expert only
    the tokens that are routed to it. A layer is converted in place, by assigning its `__class__`, and keeps its weights
    and its place in the model.
    """
    table = BatchTable()
    names = {layer: name for name, layer in model.named_modules() if type(layer) in (torch.nn.Linear, JoinedLinear)}
    seen: dict[Any, list[torch.Size]] = {}
    for layer, input in calls_of(model, list(names)):
        seen.setdefault(layer, []).append(input.shape[:-1])
    for linear in (layer for layer, shapes in seen.items() if shapes == [SHAPE]):
        linear.__class__ = AdaptableLinear
        linear.layer, linear.table = names[linear], table
    return table
