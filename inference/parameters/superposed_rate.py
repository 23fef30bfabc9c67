"""Poisson rates that are weighted sums of non-negative parameters, and their gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ember.inference.parameters.affine_map import joined

__all__ = ["Operator", "SuperposedRate", "superposed_rate", "superposed_transpose"]


class Operator(Protocol):
    """An affine map with non-negative coefficients, which need not be stored anywhere."""

    @property
    def how(self) -> str:
        """In a few words where its products come from, for the plan's table."""
        ...

    def rate(self, values: Tensor) -> Tensor:
        """``A values + b``, shape ``(R,)``, of values ``(P,)``."""
        ...

    def transpose(self, weights: Tensor) -> Tensor:
        """``A' weights``, shape ``(P,)``, of weights ``(R,)``."""
        ...


@dataclass(frozen=True)
class SuperposedRate:
    """A Poisson rate as ``A theta + b`` of the entries of several parameters, laid end to end."""

    sources: tuple[str, ...]
    entries: int
    shape: torch.Size
    operator: Operator = field(repr=False)

    domain: ClassVar[str] = "positive"

    @property
    def is_constant(self) -> bool:
        return False

    def evaluate(self, params: Mapping[str, Tensor]) -> Tensor:
        """The rate at ``params``, differentiable."""
        values = joined(self.sources, params)
        return superposed_rate(values, self.operator).reshape(self.shape)


class _Rate(torch.autograd.Function):
    """``A theta + b``, whose gradient flows back through the transpose."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, operator: Operator) -> Tensor:
        ctx.operator = operator
        return operator.rate(values.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return superposed_transpose(gradient, ctx.operator), None


class _Transpose(torch.autograd.Function):
    """``A' w``, whose gradient flows back through ``A``."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, operator: Operator) -> Tensor:
        ctx.operator = operator
        return operator.transpose(weights.detach().contiguous())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        offset = ctx.operator.rate(torch.zeros_like(gradient))
        return superposed_rate(gradient, ctx.operator) - offset, None


def superposed_rate(values: Tensor, operator: Operator) -> Tensor:
    """The rates at given values, differentiable through the transpose."""
    found: Tensor = _Rate.apply(values, operator)  # type: ignore[no-untyped-call]
    return found


def superposed_transpose(weights: Tensor, operator: Operator) -> Tensor:
    """Weights of observations scattered back to the values, differentiable through the rates."""
    found: Tensor = _Transpose.apply(weights, operator)  # type: ignore[no-untyped-call]
    return found
