"""Symmetric matrices as vectors of their lower triangles."""

import functools

import torch
from torch import Tensor

from ember.inference.numerics.log_space import safe_log

__all__ = ["log_diagonal", "times", "unvech", "vech", "vech_indices", "vech_positions"]


@functools.cache
def vech_indices(dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of the upper triangle, and -1/2 on the diagonal, -1 off it.

    An entry off the diagonal stands for two equal entries of ``x x'``.
    """
    rows, columns = torch.triu_indices(dim, dim, device=device)
    halves = torch.where(rows == columns, -0.5, -1.0).to(torch.float64)
    return rows, columns, halves


@functools.cache
def _places(dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns, _ = vech_indices(dim, device)
    return dim * rows + columns, vech_positions(dim, device).reshape(-1)


def vech(matrix: Tensor) -> Tensor:
    """The upper triangles of matrices ``(..., D, D)`` as vectors ``(..., D(D+1)/2)``."""
    places, _ = _places(matrix.shape[-1], matrix.device)
    return matrix.flatten(-2).index_select(-1, places)


def unvech(vector: Tensor, dim: int) -> Tensor:
    """The symmetric matrices ``(..., D, D)`` of upper triangles as vectors."""
    _, places = _places(dim, vector.device)
    entries = vector.index_select(-1, places)
    return entries.reshape(*entries.shape[:-1], dim, dim)


@functools.cache
def vech_positions(dim: int, device: torch.device) -> Tensor:
    """Where each entry of a symmetric matrix stands in its upper triangle, ``(D, D)``."""
    rows, columns = torch.triu_indices(dim, dim, device=device)
    positions = rows.new_zeros(dim, dim)
    every = torch.arange(len(rows), device=device)
    positions[rows, columns] = positions[columns, rows] = every
    found: Tensor = positions
    return found


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """``matrix @ vector`` for matrices ``(..., D, D)`` and vectors ``(..., D)``."""
    column = vector.unsqueeze(-1)
    # The general product reshapes both, which for small ones takes longer than the product.
    alike = matrix.dim() == 3 and matrix.shape[:-1] == vector.shape
    return (torch.bmm(matrix, column) if alike else matrix @ column).squeeze(-1)


def log_diagonal(precision: Tensor) -> Tensor:
    """Logarithms of the diagonal of the Cholesky factor."""
    factor, _ = torch.linalg.cholesky_ex(precision)
    return safe_log(factor.diagonal(dim1=-2, dim2=-1))
