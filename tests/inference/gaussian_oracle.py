"""Gaussian integrals in 50 digits, and random potentials on a pattern."""

import mpmath
import torch
from torch import Tensor

from ember.inference.numerics.gaussian.pattern import Pattern

DIGITS = 50


def exact(info: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log integral, mean and covariance for one vector and one full matrix."""
    with mpmath.workdps(DIGITS):
        matrix = mpmath.matrix(precision.tolist())
        vector = mpmath.matrix(info.tolist())
        factor = mpmath.cholesky(matrix)
        covariance = mpmath.inverse(matrix)
        mean = covariance * vector
        log_determinant = 2 * sum(mpmath.log(factor[i, i]) for i in range(len(info)))
        quadratic = (vector.T * mean)[0]
        value = (len(info) * mpmath.log(2 * mpmath.pi) - log_determinant + quadratic) / 2
        rows = range(len(info))
        return (
            torch.tensor(float(value)),
            torch.tensor([float(mean[i]) for i in rows]),
            torch.tensor([[float(covariance[i, j]) for j in rows] for i in rows]),
        )


def full_matrix(pattern: Pattern, values: Tensor) -> Tensor:
    matrix = values.new_zeros(pattern.count, pattern.count)
    matrix[pattern.rows, pattern.columns] = values
    matrix[pattern.columns, pattern.rows] = values
    return matrix


def random_potentials(
    pattern: Pattern, batch: tuple[int, ...] = (), scale: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Infos and the values of diagonally dominant matrices ``S A S``, where ``S`` is the scale."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(*batch, len(pattern), generator=generator) * 2.0 - 1.0
    off = pattern.rows != pattern.columns
    weight = values.abs() * off
    degree = torch.zeros(*batch, pattern.count)
    degree = degree.index_add(-1, pattern.rows, weight).index_add(-1, pattern.columns, weight)
    spare = 0.1 + torch.rand(*batch, pattern.count, generator=generator)
    values = torch.where(off, values, (degree + spare)[..., pattern.rows])
    info = torch.randn(*batch, pattern.count, generator=generator)
    if scale is not None:
        values = values * scale[pattern.rows] * scale[pattern.columns]
        info = info * scale
    return info, values
