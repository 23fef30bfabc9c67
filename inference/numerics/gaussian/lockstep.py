"""Products and factors of many matrices of one size, of which the last dim counts: ``(b, b, N)``.

An entry of all matrices is then one vector, and small products are loops over entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ember.inference.numerics.gaussian.blocks import inverse_factors
from ember.inference.numerics.gaussian.small import LARGEST, MANY, inverse_factor

__all__ = ["factorise", "product"]


NARROW = 6  # rows up to which loops over entries are faster than batched products
CHUNK = 8_192  # matrices at a time


def product(one: Tensor, other: Tensor) -> Tensor:
    """Products of matrices ``(a, b, N)`` and ``(b, c, N)``."""
    size, count = one.shape[1:]
    if torch.is_grad_enabled() or size > NARROW or count < MANY:
        return (one.permute(2, 0, 1) @ other.permute(2, 0, 1)).permute(1, 2, 0)
    found = one.new_empty(one.shape[0], other.shape[1], count)
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        left, right, into = one[..., part], other[..., part], found[..., part]
        torch.mul(left[:, 0, None], right[None, 0], out=into)
        for k in range(1, size):
            into.addcmul_(left[:, k, None], right[None, k])
    return found


def factorise(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses of the Cholesky factors, ``(b, b, N)``, and log determinants, ``(N,)``.

    Only lower triangles are read.
    """
    size, _, count = matrices.shape
    if size <= LARGEST and count >= MANY * size:
        rows, log_determinant = inverse_factor([matrices[i].unbind(0) for i in range(size)])
        zero = torch.zeros_like(log_determinant)
        full = [each for row in rows for each in (*row, *(size - len(row)) * (zero,))]
        return torch.stack(full).view(size, size, count), log_determinant
    first = matrices.permute(2, 0, 1)
    if torch.is_grad_enabled():  # autograd sends half of a gradient to the upper triangle
        first = first.tril() + first.tril(-1).mT
    inverse, log_determinant = inverse_factors(first)
    return inverse.permute(1, 2, 0), log_determinant
