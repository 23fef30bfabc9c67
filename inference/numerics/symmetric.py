"""Symmetric matrices as vectors of their lower triangles."""

import functools

import torch
from torch import Tensor

from ember.inference.numerics.log_space import safe_log

__all__ = ["log_diagonal", "vech_indices", "vech_positions"]


@functools.cache
def vech_indices(dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of the upper triangle, and -1/2 on the diagonal, -1 off it.

    An entry off the diagonal stands for two equal entries of ``x x'``.
    """
    rows, columns = torch.triu_indices(dim, dim)
    halves = torch.where(rows == columns, -0.5, -1.0).to(torch.float64)
    return rows, columns, halves


@functools.cache
def vech_positions(dim: int) -> Tensor:
    """Where each entry of a symmetric matrix stands in its upper triangle, ``(D, D)``."""
    rows, columns = torch.triu_indices(dim, dim)
    positions = torch.zeros(dim, dim, dtype=torch.long)
    positions[rows, columns] = positions[columns, rows] = torch.arange(len(rows))
    return positions


def log_diagonal(precision: Tensor) -> Tensor:
    """Logarithms of the diagonal of the Cholesky factor."""
    factor, _ = torch.linalg.cholesky_ex(precision)
    return safe_log(factor.diagonal(dim1=-2, dim2=-1))
