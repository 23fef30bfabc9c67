"""A model on a few rows of its data, where what it reads can be seen at a fraction of the cost."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ember.inference.inputs.arguments import Arguments
from ember.inference.reading.matching.arguments import probe_values
from ember.inference.reading.structure import Structure

__all__ = ["SLICE", "few_rows", "sliced"]


SLICE = 61  # rows: a number that no other dim is likely to have
MANY = 2_000  # rows from which on a slice pays


def few_rows(structure: Structure) -> Structure:
    """The model on the first rows of its data if it runs there with the same sites, else as it is.

    It tells what the values of single rows do not decide: which site depends on which parameters,
    and whether two runs say the same.
    """
    cut = sliced(structure)
    if cut is None:
        return structure
    try:
        nodes = cut.trace(probe_values(cut, 0)).nodes
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError):
        return structure
    names = {*structure.factor_names, *structure.parameters}
    return cut if names <= nodes.keys() else structure


def sliced(structure: Structure) -> Structure | None:
    """The model with the first rows of every argument that has as many as its largest latent.

    None if there are not many rows, if no argument has as many, or if a parameter has. Whether the
    model still runs, and whether its other rows are like these, is for the caller to see.
    """
    shapes = [shape for shape in structure.gaussian.values() if len(shape)]
    rows = max((shape[0] for shape in shapes), default=0)
    if rows < MANY or any(rows in p.shape for p in structure.parameters.values()):
        return None
    arguments = structure.arguments
    args = tuple(_cut(value, rows) for value in arguments.args)
    kwargs = {name: _cut(value, rows) for name, value in arguments.kwargs.items()}
    tensors = [*arguments.args, *arguments.kwargs.values()]
    if not any(isinstance(value, Tensor) and _has(value, rows) for value in tensors):
        return None
    return dataclasses.replace(
        structure,
        arguments=Arguments(args, kwargs),
        gaussian={
            name: torch.Size((SLICE, *shape[1:])) if len(shape) and shape[0] == rows else shape
            for name, shape in structure.gaussian.items()
        },
        signature=(),
    )


def _cut(value: Any, rows: int) -> Any:
    if isinstance(value, Tensor):
        return value[:SLICE] if _has(value, rows) else value
    if isinstance(value, Mapping):
        return {key: _cut(item, rows) for key, item in value.items()}
    return value


def _has(value: Tensor, rows: int) -> bool:
    return value.dim() > 0 and value.shape[0] == rows
