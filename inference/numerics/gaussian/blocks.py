r"""Gaussian integrals over vectors of a few entries, as many as there are rows of the data.

.. math:: \log \int \exp\left(h'z - \tfrac12 z'Pz\right) dz
          = \tfrac12\left(q \log 2\pi - \log\det P + h'P^{-1}h\right)

The gradient by ``h`` is the mean, that by ``P`` is ``-E[zz'] / 2``. Both are made with the value,
at a fraction of what it costs to send a gradient through a Cholesky factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.numerics.gaussian.small import LARGEST, LOG_TWO_PI, MANY, small_moments

__all__ = [
    "block_draw",
    "block_log_integral",
    "block_moments",
    "cholesky_or_nan",
    "lower_positions",
]


POTRI_FROM = 24  # rows from which on LAPACK's own inverse is faster than that of the factor


def block_log_integral(info: Tensor, precision: Tensor) -> Tensor:
    """The log of the integral of ``exp(info'z - z'Pz / 2)`` over ``z``.

    It is NaN where ``P`` is not positive definite. It can be differentiated any number of times.

    Args:
        info: ``(..., q)``.
        precision: ``P``, symmetric, ``(..., q, q)``. Leading dims broadcast against those of
            ``info``; a matrix that many rows share is factorised once.

    Reference: Rue & Held (2005), *Gaussian Markov Random Fields*, Chapman & Hall, section 2.2.

    Example:
        >>> import torch
        >>> precision = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        >>> block_log_integral(torch.tensor([0.0, 1.0], dtype=torch.float64), precision)
        tensor(1.2332, dtype=torch.float64)
    """
    result: Tensor = _BlockIntegral.apply(info, precision)  # type: ignore[no-untyped-call]
    return result


def block_moments(info: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log integrals ``(...)``, means ``(..., q)`` and covariances of the shape of ``precision``."""
    shapes = _Alignment.of(info, precision)
    value, mean, covariance = _moments(shapes.info(info), shapes.precision(precision))
    return shapes.batch(value), shapes.batch(mean), covariance.reshape(precision.shape)


def block_draw(info: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
    """Means plus ``L'^-1 noise``, where ``P = L L'``; shapes as above, noise ``(..., q)``."""
    factor = cholesky_or_nan(precision)
    white = torch.linalg.solve_triangular(factor, info.unsqueeze(-1), upper=False)
    sought = white + noise.unsqueeze(-1)
    drawn: Tensor = torch.linalg.solve_triangular(factor.mT, sought, upper=True).squeeze(-1)
    return drawn


def cholesky_or_nan(precision: Tensor) -> Tensor:
    """Cholesky factors; NaN for those matrices that are not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(precision)
    return torch.where((failed > 0)[..., None, None], torch.nan, factor)


def lower_positions(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of a lower triangle, and where each entry of the matrix stands in it."""
    rows, columns = torch.tril_indices(size, size, device=device)
    positions = rows.new_zeros(size, size)
    every = torch.arange(len(rows), device=device)
    positions[rows, columns] = positions[columns, rows] = every
    return rows, columns, positions


class _BlockIntegral(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, info: Tensor, precision: Tensor) -> Tensor:
        shapes = _Alignment.of(info, precision)
        value, mean, covariance = _moments(shapes.info(info), shapes.precision(precision))
        ctx.save_for_backward(info, precision)
        ctx.shapes, ctx.moments = shapes, (mean, covariance)
        return shapes.batch(value)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        info, precision = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            seen = info.view_as(info), precision.view_as(precision)
            value = _plain(*seen)
            gradients = torch.autograd.grad(
                value, seen, weights, create_graph=True, allow_unused=True
            )
            return gradients[0], gradients[1]
        shapes: _Alignment = ctx.shapes
        mean, covariance = ctx.moments
        weight = shapes.weights(weights).unsqueeze(-1)  # (S, n, 1)
        weighted = weight * mean
        by_info = by_precision = None
        if ctx.needs_input_grad[0]:
            by_info = shapes.batch(weighted).sum_to_size(info.shape)
        if ctx.needs_input_grad[1]:
            alone = weighted.shape[1] == 1
            squares = weighted.mT * mean if alone else weighted.mT @ mean
            moments = torch.addcmul(squares, weight.sum(1, keepdim=True), covariance)
            by_precision = (-0.5 * moments).reshape(precision.shape)
        return by_info, by_precision


def _moments(info: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for precisions ``(S, q, q)``, each with ``n`` infos of its own, ``(S, n, q)``."""
    count, size = len(precision), precision.shape[-1]
    if 0 < size <= LARGEST and count >= MANY * size:
        rows, columns, positions = lower_positions(size, precision.device)
        lower = precision.permute(1, 2, 0)[rows, columns].unsqueeze(-2)  # (T, 1, S)
        value, mean, covariance = small_moments(info.permute(2, 1, 0).contiguous(), lower)
        full = covariance[:, 0][positions]
        return value.T, mean.permute(2, 1, 0), full.permute(2, 0, 1)
    factor = cholesky_or_nan(precision)
    log_determinant = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    if size < POTRI_FROM:
        identity = torch.eye(size, dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        white = info @ inverse.mT
        mean, covariance = white @ inverse, inverse.mT @ inverse
    else:
        white = torch.linalg.solve_triangular(factor, info.mT, upper=False).mT
        mean = torch.linalg.solve_triangular(factor.mT, white.mT, upper=True).mT
        covariance = torch.cholesky_inverse(factor)
    quadratic = torch.einsum("snq,snq->sn", white, white)
    return 0.5 * (quadratic - log_determinant + size * LOG_TWO_PI), mean, covariance


def _plain(info: Tensor, precision: Tensor) -> Tensor:
    """The log integral as autograd understands it, for derivatives of the gradient."""
    shapes = _Alignment.of(info, precision)
    factor = cholesky_or_nan(shapes.precision(precision))
    log_determinant = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    white = torch.linalg.solve_triangular(factor, shapes.info(info).mT, upper=False)
    size = info.shape[-1]
    return shapes.batch(0.5 * (white.square().sum(-2) - log_determinant + size * LOG_TWO_PI))


@dataclass(frozen=True)
class _Alignment:
    """Leading dims sorted into the ``S`` values over which precisions differ, and the ``n`` others.

    Attributes:
        shape: The leading dims of the result.
        order: Those over which precisions differ first.
        own: The number of those.
    """

    shape: torch.Size
    order: tuple[int, ...]
    own: int

    @classmethod
    def of(cls, info: Tensor, precision: Tensor) -> _Alignment:
        lead = precision.shape[:-2]
        shape = torch.broadcast_shapes(info.shape[:-1], lead)
        missing = len(shape) - len(lead)
        differs = [d >= missing and lead[d - missing] == size for d, size in enumerate(shape)]
        dims = range(len(shape))
        own = [d for d in dims if differs[d]]
        return cls(shape, (*own, *(d for d in dims if not differs[d])), len(own))

    def info(self, info: Tensor) -> Tensor:
        """``(..., q)`` as ``(S, n, q)``."""
        whole = info.expand(*self.shape, info.shape[-1]).permute(*self.order, -1)
        return whole.reshape(*self._sizes(), info.shape[-1])

    def precision(self, precision: Tensor) -> Tensor:
        """``(..., q, q)`` as ``(S, q, q)``."""
        return precision.reshape(self._sizes()[0], *precision.shape[-2:])

    def weights(self, weights: Tensor) -> Tensor:
        """``(...)`` as ``(S, n)``."""
        return weights.permute(self.order).reshape(self._sizes())

    def batch(self, tensor: Tensor) -> Tensor:
        """``(S, n)`` or ``(S, n, q)`` back to ``(...)`` or ``(..., q)``."""
        rest = tensor.shape[2:]
        whole = tensor.reshape((*(self.shape[d] for d in self.order), *rest))
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return whole.permute((*back, *range(len(back), whole.dim())))

    def _sizes(self) -> tuple[int, int]:
        sizes = [self.shape[d] for d in self.order]
        return torch.Size(sizes[: self.own]).numel(), torch.Size(sizes[self.own :]).numel()
