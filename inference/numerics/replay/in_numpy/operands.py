"""What an expression of numpy's is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Expression", "Making", "Operand", "dtype_of", "number"]


Expression = Callable[..., str]


class Operand(str):
    """The expression of a tensor, and the tensor that it stood for."""

    like: Tensor


@dataclass(frozen=True)
class Making:
    """What an expression is made for.

    Attributes:
        out: What came out when it was recorded.
        is_read: Which of that another operation reads.
        constant: Gives a value a name in the program.
    """

    out: tuple[Tensor, ...]
    is_read: tuple[bool, ...]
    constant: Callable[[object], str]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(self.out[0].shape)

    @property
    def dtype(self) -> str:
        """The type of the result."""
        return self.constant(dtype_of(self.out[0]))


def dtype_of(tensor: Tensor) -> np.dtype[Any]:
    """Numpy's name for the type of a tensor."""
    return torch.empty(0, dtype=tensor.dtype).numpy().dtype


def number(making: Making, value: object) -> str:
    """A number or an operand."""
    if isinstance(value, Operand):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return making.constant(value)
    return f"({value!r})"
