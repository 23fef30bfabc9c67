"""Rows of a model's arguments: how many there are, and some of them."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from ember.inference.inputs.arguments import Arguments

__all__ = ["rows_of", "spread", "taken"]


def rows_of(arguments: Arguments) -> int:
    """The rows of the data, the first of the arguments that has any; 0 where none has."""
    values = (*arguments.args, *arguments.kwargs.values())
    return next((rows for rows in map(_rows, values) if rows), 0)


def _rows(value: object) -> int:
    if isinstance(value, Mapping):
        return next((_rows(item) for item in value.values()), 0)
    if isinstance(value, (list, tuple)):
        return _rows(value[0]) if value and isinstance(value[0], Tensor) else 0
    return len(value) if isinstance(value, Tensor) and value.dim() else 0


def taken(arguments: Arguments, index: Tensor) -> Arguments:
    """Some rows of the data, and of all other arguments that have as many rows.

    Args:
        arguments: The arguments; what has other sizes stays as it is.
        index: The numbers of the rows.
    """
    rows = rows_of(arguments)

    def of(value: object) -> object:
        if isinstance(value, Tensor):
            has_rows = value.dim() > 0 and len(value) == rows and value.layout == torch.strided
            return value.index_select(0, index) if has_rows else value
        if type(value) is dict:
            return {key: of(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            if len(value) == rows and all(isinstance(item, (int, float)) for item in value):
                return type(value)(value[i] for i in index.tolist())
            return type(value)(map(of, value))
        return value

    kwargs = cast(dict[str, object], of(dict(arguments.kwargs)))
    return Arguments(tuple(map(of, arguments.args)), kwargs)


def spread(rows: int, count: int) -> Tensor:
    """``count`` of the numbers of rows, evenly spread, all of them if they are fewer."""
    places = torch.linspace(0, rows - 1, min(count, rows), dtype=torch.float64)
    return places.round().long()
