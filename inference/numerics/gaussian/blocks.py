r"""Gaussian integrals over vectors of a few entries, as many as there are rows of the data.

.. math:: \log \int \exp\left(h'z - \tfrac12 z'Pz\right) dz
          = \tfrac12\left(q \log 2\pi - \log\det P + h'P^{-1}h\right)

The gradient by ``h`` is the mean, that by ``P`` is ``-E[zz'] / 2``. Both are made with the value,
at a fraction of what it costs to send a gradient through a Cholesky factorisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.numerics.gaussian.small import (
    LARGEST,
    LOG_TWO_PI,
    MANY,
    inverse_factor,
    small_moments,
)
from ember.inference.numerics.shapes import broadcast_shapes

__all__ = [
    "block_draw",
    "block_log_integral",
    "block_moments",
    "block_value",
    "by_entry",
    "cholesky_or_nan",
    "gradient_graph",
    "inverse_factors",
    "is_differentiated",
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
    if not is_differentiated(info, precision):
        return block_value(info, precision)
    result: Tensor = _BlockIntegral.apply(info, precision)  # type: ignore[no-untyped-call]
    return result


def block_value(info: Tensor, precision: Tensor) -> Tensor:
    """The same number without what its gradient needs."""
    shapes = _Alignment.of(info, precision)
    infos, precisions = shapes.info(info), shapes.precision(precision)
    if _is_small(precisions):
        return shapes.batch(_small_moments(infos, precisions)[0])
    return shapes.batch(_solved(infos, precisions)[0])


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


def is_differentiated(*tensors: Tensor) -> bool:
    """Whether a graph is to be recorded."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def gradient_graph(
    function: Callable[[Tensor, Tensor], Tensor],
    info: Tensor,
    precision: Tensor,
    weights: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradient of a function as one that can be differentiated itself."""
    # Views, so that one of them is not reached through the other from which it was computed.
    given = [each.view_as(each) for each in (info, precision)]
    sought = [each for each, want in zip(given, wanted, strict=True) if want]
    found = iter(
        torch.autograd.grad(
            function(given[0], given[1]),
            sought,
            weights,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )
    return [next(found) if want else None for want in wanted]


def cholesky_or_nan(precision: Tensor) -> Tensor:
    """Cholesky factors; NaN for those matrices that are not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(precision)
    return torch.where((failed > 0)[..., None, None], torch.nan, factor)


def inverse_factors(precision: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses of the Cholesky factors, ``(S, q, q)``, and log determinants ``(S,)``."""
    count, size = precision.shape[:2]
    if size <= LARGEST and count >= MANY * size:
        lower = precision.permute(1, 2, 0).contiguous()
        rows, log_determinant = inverse_factor([lower[i].unbind(0) for i in range(size)])
        zero = torch.zeros_like(log_determinant)
        full = [each for row in rows for each in (*row, *(size - len(row)) * (zero,))]
        return torch.stack(full, -1).view(count, size, size), log_determinant
    factor = cholesky_or_nan(precision)
    identity = torch.eye(size, dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse, 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def by_entry(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky factor, ``w = L^-1 h`` and what each entry adds to the value, for one matrix."""
    factor = cholesky_or_nan(matrix)
    white = torch.linalg.solve_triangular(factor, vector.unsqueeze(-1), upper=False).squeeze(-1)
    return factor, white, 0.5 * (white.square() + LOG_TWO_PI) - factor.diagonal().log()


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
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        info, precision = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            return tuple(gradient_graph(_plain, info, precision, weights, ctx.needs_input_grad))
        shapes: _Alignment = ctx.shapes
        mean, covariance = ctx.moments
        weight = shapes.weights(weights).unsqueeze(-1)  # (S, n, 1)
        by_info = by_precision = None
        if ctx.needs_input_grad[0]:
            by_info = shapes.batch(weight * mean).sum_to_size(info.shape)
        if ctx.needs_input_grad[1]:
            half = -0.5 * weight
            left = (half * mean).mT
            squares = left * mean if mean.shape[1] == 1 else left @ mean
            moments = torch.addcmul(squares, half.sum(1, keepdim=True), covariance)
            by_precision = moments.reshape(precision.shape)
        return by_info, by_precision


def _moments(info: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for precisions ``(S, q, q)``, each with ``n`` infos of its own, ``(S, n, q)``."""
    if _is_small(precision):
        return _small_moments(info, precision)
    value, white, factor = _solved(info, precision)
    if precision.shape[-1] < POTRI_FROM:
        return value, white @ factor, factor.mT @ factor
    mean = torch.linalg.solve_triangular(factor.mT, white.mT, upper=True).mT
    return value, mean, torch.cholesky_inverse(factor)


def _is_small(precision: Tensor) -> bool:
    count, size = precision.shape[:2]
    return 0 < size <= LARGEST and count >= MANY * size


def _small_moments(info: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns, positions = lower_positions(precision.shape[-1], precision.device)
    lower = precision.permute(1, 2, 0)[rows, columns].unsqueeze(-2)  # (T, 1, S)
    value, mean, covariance = small_moments(info.permute(2, 1, 0).contiguous(), lower)
    full = covariance[:, 0][positions]
    return value.T, mean.permute(2, 1, 0), full.permute(2, 0, 1)


def _solved(info: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, ``L^-1 h`` for each info, and ``L`` or, where there are few rows, ``L^-1``."""
    size = precision.shape[-1]
    if size < POTRI_FROM:
        factor, log_determinant = inverse_factors(precision)
        white = info @ factor.mT
    else:
        factor = cholesky_or_nan(precision)
        log_determinant = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        white = torch.linalg.solve_triangular(factor, info.mT, upper=False).mT
    quadratic = torch.einsum("snq,snq->sn", white, white)
    value = 0.5 * (quadratic - log_determinant.unsqueeze(-1) + size * LOG_TWO_PI)
    return value, white, factor


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
        shape = broadcast_shapes(info.shape[:-1], lead)
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
