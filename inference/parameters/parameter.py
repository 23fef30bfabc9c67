"""A parameter of a model: its shape, its support, and where it starts."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Transform, constraints, transform_to

from ember.inference.parameters.portable import packed, unpacked

__all__ = ["Parameter", "by_site", "entry_label", "entry_labels"]


@dataclass(frozen=True)
class Parameter:
    """A site that the M-step maximises."""

    name: str
    support: constraints.Constraint
    shape: torch.Size
    plates: tuple[str, ...]
    has_prior: bool
    start: Tensor
    is_module_parameter: bool = False

    def batched(self, count: int) -> "Parameter":
        """The parameter with several values, along a leading dim."""
        shape = torch.Size([count, *self.shape])
        return dataclasses.replace(self, shape=shape, start=self.start.expand(shape))

    def to_constrained(self, unconstrained: Tensor) -> Tensor:
        """Maps free reals to the parameter's support."""
        value: Tensor = self.transform(unconstrained)
        return value

    def to_unconstrained(self, value: Tensor) -> Tensor:
        """The inverse of ``to_constrained``, up to what the map leaves free."""
        free: Tensor = self.transform.inv(value)
        return free

    @functools.cached_property
    def transform(self) -> Transform:
        """From free reals to the support."""
        found: Transform = transform_to(self.support)
        return found

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "transform"}
        return {**state, "support": packed(self.support)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, support=unpacked(state["support"]))


def entry_label(name: str, index: Sequence[int]) -> str:
    """``name[0, 1]``, or the name alone for a scalar."""
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def entry_labels(shapes: Mapping[str, torch.Size]) -> list[str]:
    """The label of every entry of values of these shapes, in their order."""
    return [entry_label(n, index) for n, shape in shapes.items() for index in np.ndindex(*shape)]


def by_site(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """One number for each entry ``(E,)``, in the shapes of the sites."""
    pieces = flat.split([shape.numel() for shape in shapes.values()])
    return {n: piece.reshape(shapes[n]) for n, piece in zip(shapes, pieces, strict=True)}
