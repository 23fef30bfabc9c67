"""Supports on their way through pickle: those of a name come back as themselves.

Torch and Pyro have one object for each support such as ``positive``, which is known by its
identity; pickle alone would make a second one.
"""

from typing import TypeAlias

import pyro.distributions.constraints as constraints
from torch.distributions.constraints import Constraint

__all__ = ["Portable", "packed", "unpacked"]

Portable: TypeAlias = "str | tuple[Portable, int] | Constraint"
"""The name of a support, what it is independent copies of, or the support itself."""


def packed(support: Constraint) -> Portable:
    """A support as pickle may take it."""
    for name in constraints.__all__:
        if getattr(constraints, name) is support:
            return name
    if isinstance(support, constraints.independent):
        return packed(support.base_constraint), support.reinterpreted_batch_ndims
    return support


def unpacked(portable: Portable) -> Constraint:
    """The support that was packed."""
    if isinstance(portable, str):
        named: Constraint = getattr(constraints, portable)
        return named
    if isinstance(portable, tuple):
        base, dims = portable
        return constraints.independent(unpacked(base), dims)
    return portable
