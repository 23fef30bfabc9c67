"""Many Gaussian integrals of few entries: loops over entries, vectors over integrals.

For a few rows LAPACK spends its time on the call for each matrix. Here each entry is a vector over
all matrices, and the loops run over the entries. Matrices that are not positive definite give NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LARGEST", "MANY", "Rows", "inverse_factor", "small_moments", "symmetric_inverse"]


LARGEST = 5  # rows up to which this is faster than LAPACK,
MANY = 250  # and how many matrices there must be for each row
CHUNK = 8_192  # matrices at a time, so that their entries stay in the cache
LOG_TWO_PI = math.log(2.0 * math.pi)

Rows = list[list[Tensor]]  # a lower triangle, row by row


def small_moments(info: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log integrals, means and covariances, all with the dims of entries first.

    Args:
        info: ``(q, ..., B)``.
        lower: Lower triangles of the precisions, row by row, ``(q (q + 1) / 2, ..., B)``. The dims
            after the first of both broadcast against each other.

    Returns:
        Log integrals ``(..., B)``, means ``(q, ..., B)`` and the lower triangles of the
        covariances, of the shape of ``lower``.
    """
    if lower.shape[-1] <= CHUNK:
        return _moments(info, lower)
    whole = info.expand(*info.shape[:-1], lower.shape[-1])
    parts = [
        _moments(whole[..., start : start + CHUNK], lower[..., start : start + CHUNK])
        for start in range(0, lower.shape[-1], CHUNK)
    ]
    value, mean, covariance = (torch.cat(each, -1) for each in zip(*parts, strict=True))
    return value, mean, covariance


def _moments(info: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    entries = iter(lower.unbind(0))
    size = len(info)
    inverse, log_determinant = inverse_factor(
        [[next(entries) for _ in range(i + 1)] for i in range(size)]
    )
    given = info.unbind(0)
    white = [_dot(row, given[: i + 1]) for i, row in enumerate(inverse)]
    value = 0.5 * (_dot(white, white) - log_determinant + size * LOG_TWO_PI)
    mean = [_dot([row[i] for row in inverse[i:]], white[i:]) for i in range(size)]
    covariance = [each for row in symmetric_inverse(inverse) for each in row]
    return value, torch.stack(mean), torch.stack(covariance)


def inverse_factor(matrix: Sequence[Sequence[Tensor]]) -> tuple[Rows, Tensor]:
    """The inverse of the Cholesky factor of each matrix, and the logarithm of each determinant.

    Args:
        matrix: Lower triangles; ``matrix[i][j]`` holds an entry of all matrices.
    """
    factor: Rows = []
    inverse: Rows = []
    logs: list[Tensor] = []
    for i, given in enumerate(matrix):
        row: list[Tensor] = []
        pivot = given[i]
        for j in range(i):
            entry = given[j]
            for k in range(j):
                entry = torch.addcmul(entry, row[k], factor[j][k], value=-1.0)
            row.append(entry * inverse[j][j])
            pivot = torch.addcmul(pivot, row[j], row[j], value=-1.0)
        pivot = torch.where(pivot > 0.0, pivot, torch.nan)
        logs.append(pivot.log())
        reciprocal = pivot.rsqrt()
        below = [_dot(row[j:], [inverse[k][j] for k in range(j, i)]) for j in range(i)]
        factor.append(row)
        inverse.append([*(-reciprocal * each for each in below), reciprocal])
    return inverse, torch.stack(logs).sum(0)


def symmetric_inverse(inverse: Rows) -> Rows:
    """Lower triangles of the inverses, from the inverse factors."""
    columns = [[row[j] for row in inverse[j:]] for j in range(len(inverse))]
    return [
        [_dot(columns[i], columns[j][i - j :]) for j in range(i + 1)] for i in range(len(columns))
    ]


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    total = one[0] * other[0]
    for a, b in zip(one[1:], other[1:], strict=True):
        total = torch.addcmul(total, a, b)
    return total
