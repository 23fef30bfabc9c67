"""Which entry of which parameter feeds which entry of an argument: gather and scatter."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ember.inference.numerics.log_space import safe_log
from ember.inference.numerics.shapes import append_dims, prepend_dims
from ember.inference.parameters.batching import Shapes, batched_rows

__all__ = ["ON", "ArgumentMap", "ParameterRows", "row_count", "rows_of"]


ON: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": lambda x: x,
    "log": safe_log,
    "softmax": lambda x: x.softmax(-1),
}


_INVERSE: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": lambda x: x,
    "log": torch.exp,
    "logit": torch.sigmoid,
}


@dataclass(frozen=True)
class ParameterRows:
    """Rows of parameters, after a transform: what an index points into."""

    sources: tuple[str, ...]
    on: str
    event_dim: int

    @property
    def untransformed(self) -> "ParameterRows":
        """The rows as they are."""
        return dataclasses.replace(self, on="raw")

    def rows(self, params: Mapping[str, Tensor]) -> Tensor:
        """All rows of all sources, shape ``(R, *event)``."""
        each = [rows_of(params[name], self.event_dim) for name in self.sources]
        rows = each[0] if len(each) == 1 else torch.cat(each)
        return rows if self.on == "raw" else ON[self.on](rows)

    def batched(self, shapes: Shapes, count: int) -> "ParameterRows":
        """The table for several values of every parameter: it reads all there are as it is."""
        return self

    def batched_index(self, index: Tensor, shapes: Shapes, count: int) -> Tensor:
        """The rows that an index points to, for each of several values."""
        sizes = [row_count(shapes[source], self.event_dim) for source in self.sources]
        return batched_rows(index, sizes, count)


@dataclass(frozen=True)
class ArgumentMap:
    """An argument as ``inverse(coefficient * table[index] + offset)``.

    ``index``, ``coefficient`` and ``offset`` have the argument's batch shape, broadcast dims
    collapsed to 1; where an entry is constant the coefficient is 0 and the offset is its value.
    """

    domain: str
    space: str
    table: ParameterRows | None
    index: Tensor
    coefficient: Tensor
    offset: Tensor

    @property
    def is_constant(self) -> bool:
        return self.table is None

    @property
    def sources(self) -> tuple[str, ...]:
        return () if self.table is None else self.table.sources

    def evaluate(self, params: Mapping[str, Tensor]) -> Tensor:
        """The argument at ``params``, broadcast dims of size 1."""
        if self.table is None:
            return self.offset
        value, simple = self.table.rows(params), self._simple
        if not (simple.in_order and len(value) == len(self.index)):
            value = value[self.index]
        if not simple.is_plain:
            value = append_dims(self.coefficient, self.table.event_dim) * value
        if not simple.starts_at_zero:
            value = value + self.offset
        return value if self.space == "raw" else _INVERSE[self.space](value)

    def column(self, params: Mapping[str, Tensor]) -> Tensor:
        """The entries of the table as rows of one coefficient each, ``(R, 1)``."""
        assert self.table is not None
        return append_dims(self.table.rows(params), 1)

    @functools.cached_property
    def _simple(self) -> "_Simple":
        """Which parts of the map do nothing."""
        index, offset = self.index, self.offset
        every = torch.arange(index.numel(), device=index.device)
        rank = index.dim()
        sizes = zip(offset.shape[:rank], index.shape, strict=False)
        is_within = all(size in (1, own) for size, own in sizes)
        covers = self.coefficient.shape == index.shape
        return _Simple(
            in_order=rank == 1 and torch.equal(index, every),
            is_plain=covers and bool((self.coefficient == 1.0).all()),
            starts_at_zero=is_within and offset.dim() >= rank and not bool(offset.any()),
        )

    def batched(self, shapes: Shapes, rank: int, count: int) -> "ArgumentMap":
        """The map for several values of every parameter, its batch dims ``rank`` and one more."""
        if self.table is None:
            return self
        event = self.offset.dim() - self.index.dim()
        return dataclasses.replace(
            self,
            index=self.table.batched_index(prepend_dims(self.index, rank), shapes, count),
            coefficient=prepend_dims(self.coefficient, rank),
            offset=prepend_dims(self.offset, rank + event),
        )


class _Simple(NamedTuple):
    in_order: bool
    is_plain: bool
    starts_at_zero: bool


def row_count(shape: torch.Size, event_dim: int) -> int:
    """How many rows a parameter of this shape has, the last ``event_dim`` dims being one row."""
    return shape[: len(shape) - event_dim].numel()


def rows_of(value: Tensor, event_dim: int) -> Tensor:
    """All batch dims as one, ``(R, *event)``."""
    if value.dim() == event_dim + 1:
        return value
    return value.reshape(-1, *value.shape[value.dim() - event_dim :])
