"""Shapes, places, copies, and arrays of one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ember.inference.numerics.replay.in_numpy.operands import (
    Expression,
    Making,
    Operand,
    dtype_of,
    number,
)

__all__ = ["EXPRESSIONS", "HELPERS"]


def same(making: Making, x: Operand, *args: object, **kwargs: object) -> str:
    """The operand itself."""
    return str(x)


def reshaped(making: Making, x: Operand, *args: object, **kwargs: object) -> str:
    """The same numbers in another shape."""
    if making.shape == tuple(x.like.shape):
        return str(x)
    return f"{x}.reshape({making.shape})"


def copied(making: Making, x: Operand, **kwargs: object) -> str:
    """A copy of an array."""
    return f"{x}.copy()"


def converted(making: Making, x: Operand, *args: object, **kwargs: object) -> str:
    """A copy of another type."""
    return f"{x}.astype({making.dtype})"


def expanded(making: Making, x: Operand, size: Sequence[int], implicit: bool = False) -> str:
    """Repeated along dims; what numpy broadcasts by itself would have the wrong shape."""
    if making.shape == tuple(x.like.shape):
        return str(x)
    ones = making.constant(np.ones(making.shape, dtype_of(making.out[0])))
    return f"{x} * {ones}" if x.like.dtype is not torch.bool else f"{x} & {ones}"


def permuted(making: Making, x: Operand, dims: Sequence[int]) -> str:
    """With dims in another order."""
    return f"{x}.transpose({tuple(dims)})"


def swapped(making: Making, x: Operand, first: int = 0, second: int = 1) -> str:
    """With two dims exchanged."""
    return f"{x}.swapaxes({first}, {second})" if x.like.dim() > 1 else str(x)


def taken(making: Making, x: Operand, dim: int, index: object) -> str:
    """The place of an index in one dim."""
    dim %= x.like.dim()
    return f"{x}[{making.constant((*(slice(None),) * dim, index))}]"


def selected(making: Making, x: Operand, dim: int, index: int) -> str:
    """One place along a dim."""
    return taken(making, x, dim, index)


def sliced(
    making: Making,
    x: Operand,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> str:
    """Some places along a dim."""
    return taken(making, x, dim, slice(start, end, step))


def split(making: Making, x: Operand, sizes: Sequence[int], dim: int = 0) -> str:
    """Pieces along a dim."""
    ends = np.cumsum(sizes).tolist()
    each = [taken(making, x, dim, slice(e - s, e)) for s, e in zip(sizes, ends, strict=True)]
    return f"({', '.join(each)},)"


def unbound(making: Making, x: Operand, dim: int = 0) -> str:
    """Every place along a dim."""
    each = [taken(making, x, dim, i) for i in range(len(making.out))]
    return f"({', '.join(each)},)"


def diagonal(making: Making, x: Operand, offset: int = 0, dim1: int = 0, dim2: int = 1) -> str:
    """A diagonal of two dims."""
    return f"{x}.diagonal({offset}, {dim1}, {dim2})"


def looked_up(making: Making, x: Operand, dim: int, index: Operand) -> str:
    """Places along a dim."""
    return f"{x}.take({index}, {dim})"


def indexed(making: Making, x: Operand, indices: Sequence[Operand | None]) -> str:
    """Places by arrays of indices."""
    each = ", ".join(":" if index is None else str(index) for index in indices)
    return f"{x}[{each}]"


def added(making: Making, x: Operand, dim: int, index: Operand, source: Operand) -> str:
    """Sums at places along the first dim, or the second."""
    at = str(index) if dim % x.like.dim() == 0 else f"(every, {index})"
    if dim % x.like.dim() > 1:
        raise NotImplementedError
    return f"added_at({x}.copy(), {at}, {source})"


def put_back(index: str) -> Expression:
    """Zeros but for some places along a dim; the derivative of taking them."""

    def expression(making: Making, x: Operand, size: Sequence[int], dim: int, *where: Any) -> str:
        dim %= len(size)
        chosen = slice(*where) if index == "slice" else where[0]
        at = making.constant((*(slice(None),) * dim, chosen))
        return f"put({filled(0)(making)}, {at}, {x})"

    return expression


def put(
    making: Making,
    x: Operand,
    indices: Sequence[Operand | None],
    value: Operand,
    accumulate: bool = False,
) -> str:
    """Values written to, or added at, places by arrays of indices."""
    if any(index is not None and index.like.dtype is torch.bool for index in indices):
        raise NotImplementedError
    each = ", ".join("every" if index is None else str(index) for index in indices)
    return f"{'added_at' if accumulate else 'put'}({x}.copy(), ({each},), {value})"


def filled(value: object) -> Expression:
    """An array of one value, of the shape of the result."""

    def expression(making: Making, *args: object, **kwargs: object) -> str:
        if not making.shape:
            return f"{making.dtype}.type({value})"
        return f"filled({making.shape}, {value}, {making.dtype})"

    return expression


def full(making: Making, x: Operand, *args: Any, **kwargs: object) -> str:
    """An array of a given value."""
    return filled(number(making, args[-1]))(making)


def joined(making: Making, each: Sequence[Operand], dim: int = 0) -> str:
    """Arrays one after the other."""
    every = [x for x in each if tuple(x.like.shape) != (0,)]  # torch leaves these out
    if not every:
        raise NotImplementedError
    return f"joined(({', '.join(every)},), {dim})"


def stacked(making: Making, each: Sequence[Operand], dim: int = 0) -> str:
    """Arrays along a new dim."""
    dim %= making.out[0].dim()
    index = making.constant((*(slice(None),) * dim, None))
    every = [f"{x}[{index}]" if x.like.dim() else f"one({x})" for x in each]
    return f"joined(({', '.join(every)},), {dim})"


def added_at_indices(where: np.ndarray, index: Any, value: Any) -> np.ndarray:
    """Adds at places that may be the same."""
    np.add.at(where, index, value)
    return where


def put_at(where: np.ndarray, index: Any, value: Any) -> np.ndarray:
    """Writes values to places."""
    where[index] = value
    return where


def one(value: object) -> np.ndarray:
    """A number as an array of one."""
    return np.asarray(value).reshape(1)


HELPERS: dict[str, object] = {
    "added_at": added_at_indices,
    "every": slice(None),
    "filled": np.full,
    "joined": np.concatenate,
    "put": put_at,
    "one": one,
}

RESHAPES = ("view", "_unsafe_view", "unsqueeze", "squeeze", "reshape")
EXPRESSIONS: dict[str, Expression] = {
    **{f"{name}.{kind}": reshaped for name in RESHAPES for kind in ("default", "dim", "dims")},
    "detach.default": same,
    "alias.default": same,
    "clone.default": copied,
    "_to_copy.default": converted,
    "expand.default": expanded,
    "permute.default": permuted,
    "transpose.int": swapped,
    "t.default": swapped,
    "select.int": selected,
    "slice.Tensor": sliced,
    "split_with_sizes.default": split,
    "unbind.int": unbound,
    "diagonal.default": diagonal,
    "index_select.default": looked_up,
    "index.Tensor": indexed,
    "index_add.default": added,
    "slice_backward.default": put_back("slice"),
    "select_backward.default": put_back("select"),
    "index_put.default": put,
    "cat.default": joined,
    "stack.default": stacked,
    "zeros_like.default": filled(0),
    "ones_like.default": filled(1),
    "new_zeros.default": filled(0),
    "new_ones.default": filled(1),
    "new_empty.default": filled(0),
    "empty_like.default": filled(0),
    "full_like.default": full,
    "new_full.default": full,
}
