r"""What every algorithm for Gaussian integrals offers, and its gradient as one node of the graph.

.. math:: \frac{\partial}{\partial h_i} = E[z_i], \qquad
          \frac{\partial}{\partial P_{ii}} = -\tfrac12 E[z_i^2], \qquad
          \frac{\partial}{\partial P_{ij}} = -E[z_i z_j]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ember.inference.numerics.gaussian.blocks import (
    cholesky_or_nan,
    gradient_graph,
    is_differentiated,
)
from ember.inference.numerics.gaussian.gathering import take
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.shapes import broadcast_shapes

__all__ = ["LARGEST_DENSE", "GaussianSystem", "Integral"]


LARGEST_DENSE = 5_000  # entries of which a dense inverse is made


class Integral(NamedTuple):
    """A Gaussian integral with the moments of what was integrated.

    Attributes:
        value: Logarithms of the integrals of all components, ``(..., C)``.
        mean: Of each entry, ``(..., count)``.
        covariance: Of each pair of the pattern, ``(..., nnz)``.
    """

    value: Tensor
    mean: Tensor
    covariance: Tensor


class GaussianSystem(ABC):
    """Integrals of ``exp(h'z - z'Pz / 2)`` for all ``P`` of one pattern.

    A precision that is not positive definite gives NaN: values, moments and draws alike.

    Attributes:
        pattern: Where ``P`` may differ from zero.
        components: For each entry the number of the independent component to which it belongs,
            ``(count,)``.
        count: How many components there are, ``C``.
        description: The algorithm in words for a user.
        seconds: What a value and its gradient are expected to take.
    """

    takes_batches: ClassVar[bool] = True  # else leading dims are looped over
    pattern: Pattern
    components: Tensor
    count: int
    description: str
    seconds: float = 0.0

    def log_integral(self, info: Tensor, precision: Tensor) -> Tensor:
        """The logarithm of the integral over each component, differentiable any number of times.

        Args:
            info: ``h``, ``(..., count)``.
            precision: The values of ``P`` on the pattern, ``(..., nnz)``: of two equal entries off
                the diagonal it holds one.

        Returns:
            ``(..., C)``; NaN where ``P`` is not positive definite.
        """
        if self._has_batch(info, precision):
            return torch.stack(
                [self.log_integral(h, p) for h, p in _each(info, precision)]
            ).reshape(*_batch(info, precision), self.count)
        if not is_differentiated(info, precision):
            with torch.no_grad():
                return self.value(info, precision)
        result: Tensor = _LogIntegral.apply(self, info, precision)  # type: ignore[no-untyped-call]
        return result

    def moments(self, info: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``(..., count)`` and covariances of the pairs of the pattern, ``(..., nnz)``."""
        with torch.no_grad():
            if self._has_batch(info, precision):
                batch = _batch(info, precision)
                found = [self.moments(h, p) for h, p in _each(info, precision)]
                mean, covariance = (torch.stack(each) for each in zip(*found, strict=True))
                return mean.reshape(*batch, -1), covariance.reshape(*batch, -1)
            _, mean, covariance = self.integrate(info, precision)
            return mean, covariance

    def sample(self, info: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
        """A draw of ``z`` from each vector of standard normal noise, ``(..., count)``."""
        with torch.no_grad():
            if self.takes_batches:
                return self.draw(info, precision, noise)
            batch = broadcast_shapes(_batch(info, precision), noise.shape[:-1])
            if not batch:
                return self.draw(info, precision, noise)
            infos, noises = (x.expand(*batch, -1).flatten(0, -2) for x in (info, noise))
            precisions = precision.expand(*batch, -1).flatten(0, -2)
            draws = [self.draw(*each) for each in zip(infos, precisions, noises, strict=True)]
            return torch.stack(draws).reshape(*batch, -1)

    def pairs(self, info: Tensor, precision: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Posterior covariances of any pairs, ``(..., pairs)``.

        Raises:
            ValueError: If they take a dense inverse of more than 5,000 entries.
        """
        places = self.pattern.find(rows, columns)
        if bool((places >= 0).all()):
            return self.moments(info, precision)[1][..., places]
        if self.pattern.count > LARGEST_DENSE:
            raise ValueError(
                f"Covariances of pairs that no factor reads together take the inverse of a matrix "
                f"of {self.pattern.count:,} rows, and no more than {LARGEST_DENSE:,} are inverted; "
                "ask for pairs that a factor reads together."
            )
        with torch.no_grad():
            inverse = torch.cholesky_inverse(cholesky_or_nan(dense(self.pattern, precision)))
            batch = _batch(info, precision)
            found: Tensor = inverse[..., rows, columns].expand(*batch, len(rows))
            return found

    def value(self, info: Tensor, precision: Tensor) -> Tensor:
        """The log integral alone, the same number to the last bit; no graph is recorded."""
        return self.integrate(info, precision).value

    @abstractmethod
    def integrate(self, info: Tensor, precision: Tensor) -> Integral:
        """Value and moments; no graph is recorded.

        The covariance has the leading dims of ``precision`` alone.
        """

    @abstractmethod
    def plain(self, info: Tensor, precision: Tensor) -> Tensor:
        """The log integral in operations that autograd understands, for second derivatives."""

    @abstractmethod
    def draw(self, info: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
        """Mean plus ``L'^-1 noise`` with ``P = L L'``."""

    def _has_batch(self, info: Tensor, precision: Tensor) -> bool:
        return not self.takes_batches and max(info.dim(), precision.dim()) > 1


def dense(pattern: Pattern, precision: Tensor) -> Tensor:
    """The matrix of which ``precision`` holds the lower triangle, ``(..., count, count)``."""
    matrix = precision.new_zeros(*precision.shape[:-1], pattern.count * pattern.count)
    rows, columns = pattern.rows, pattern.columns
    matrix = matrix.index_copy(-1, rows * pattern.count + columns, precision)
    matrix = matrix.index_copy(-1, columns * pattern.count + rows, precision)
    full: Tensor = matrix.unflatten(-1, (pattern.count, pattern.count))
    return full


def _batch(info: Tensor, precision: Tensor) -> torch.Size:
    batch: torch.Size = broadcast_shapes(info.shape[:-1], precision.shape[:-1])
    return batch


def _each(info: Tensor, precision: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pairs of vectors, one for each place of the leading dims."""
    batch = _batch(info, precision)
    infos, precisions = (x.expand(*batch, -1).flatten(0, -2) for x in (info, precision))
    return list(zip(infos, precisions, strict=True))


class _LogIntegral(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, system: GaussianSystem, info: Tensor, precision: Tensor) -> Tensor:
        value, mean, covariance = system.integrate(info, precision)
        ctx.save_for_backward(info, precision)
        ctx.system, ctx.moments = system, (mean, covariance)
        return value

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        system: GaussianSystem = ctx.system
        info, precision = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            wanted = ctx.needs_input_grad[1:]
            return None, *gradient_graph(system.plain, info, precision, weights, wanted)
        mean, covariance = ctx.moments
        pattern = system.pattern
        if system.count == 1:
            own, weighted = weights, weights * mean
        else:
            own = take(weights, system.components)
            weighted, own = own * mean, take(own, pattern.rows)
        by_info = by_precision = None
        if ctx.needs_input_grad[1]:
            by_info = weighted.sum_to_size(info.shape)
        if ctx.needs_input_grad[2]:
            squares = take(weighted, pattern.rows) * take(mean, pattern.columns)
            moments = torch.addcmul(squares, own, covariance)
            by_precision = (moments * -pattern.halves).sum_to_size(precision.shape)
        return None, by_info, by_precision
