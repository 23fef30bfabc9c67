"""One dense Cholesky factorisation: for a few thousand entries, most pairs of which are coupled."""

from __future__ import annotations

import torch
from torch import Tensor

from ember.inference.numerics.gaussian.blocks import (
    block_draw,
    block_log_integral,
    block_moments,
    block_value,
)
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.system import GaussianSystem, Integral, dense

__all__ = ["DenseSystem"]


class DenseSystem(GaussianSystem):
    """The whole matrix at once, ``O(n^3)``."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.components = torch.zeros_like(pattern.rows[: pattern.count])
        self.count = 1
        self.description = f"a dense matrix of {pattern.count:,} entries"

    def integrate(self, info: Tensor, precision: Tensor) -> Integral:
        value, mean, covariance = block_moments(info, dense(self.pattern, precision))
        pairs = covariance[..., self.pattern.rows, self.pattern.columns]
        return Integral(value.unsqueeze(-1), mean, pairs)

    def value(self, info: Tensor, precision: Tensor) -> Tensor:
        return block_value(info, dense(self.pattern, precision)).unsqueeze(-1)

    def plain(self, info: Tensor, precision: Tensor) -> Tensor:
        return block_log_integral(info, dense(self.pattern, precision)).unsqueeze(-1)

    def draw(self, info: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
        return block_draw(info, dense(self.pattern, precision), noise)
