"""Which entries of a symmetric matrix may differ from zero."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

__all__ = ["Pattern"]


@dataclass(frozen=True, eq=False)
class Pattern:
    """The lower triangle of a sparse symmetric matrix: each pair once, the diagonal complete.

    Pairs are sorted by row, then by column.

    Attributes:
        count: Number of rows.
        rows: Of each pair, the larger index, ``(nnz,)``.
        columns: Of each pair, the smaller index or the same, ``(nnz,)``.

    Example:
        >>> import torch
        >>> pattern = Pattern.of(3, torch.tensor([0, 1, 0]), torch.tensor([2, 0, 2]))
        >>> list(zip(pattern.rows.tolist(), pattern.columns.tolist()))
        [(0, 0), (1, 0), (1, 1), (2, 0), (2, 2)]
        >>> pattern.place(torch.tensor([0]), torch.tensor([2]))
        tensor([3])
    """

    count: int
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, count: int, rows: Tensor, columns: Tensor) -> Pattern:
        """From any list of pairs: in any order, repeated, with or without the diagonal."""
        every = torch.arange(count, device=rows.device)
        keys = _keys(count, torch.cat([rows, every]), torch.cat([columns, every])).unique()
        return cls(count, keys // count, keys % count)

    def place(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Where pairs stand in the pattern; the order of the two indices is irrelevant.

        Raises:
            ValueError: If a pair is not in the pattern.
        """
        places = self.find(rows, columns)
        if bool((places < 0).any()):
            raise ValueError("A pair of entries is not in the pattern.")
        return places

    def find(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The same as ``place``, with -1 for pairs that are not in the pattern."""
        wanted = _keys(self.count, rows, columns)
        places = torch.searchsorted(self.keys, wanted).clamp_max(len(self.keys) - 1)
        return torch.where(self.keys[places] == wanted, places, -1)

    @functools.cached_property
    def keys(self) -> Tensor:
        """A number for each pair, ascending."""
        return _keys(self.count, self.rows, self.columns)

    @functools.cached_property
    def halves(self) -> Tensor:
        """1/2 on the diagonal, 1 off it: an entry off it stands for two of the matrix."""
        return torch.where(self.rows == self.columns, 0.5, 1.0).to(torch.float64)

    def graph(self) -> scipy.sparse.csr_array:
        """The pairs of both triangles, the diagonal among them, as a sparse matrix of ones."""
        rows, columns = self.rows.cpu().numpy(), self.columns.cpu().numpy()
        off = rows != columns
        ends = np.concatenate([rows, columns[off]]), np.concatenate([columns, rows[off]])
        shape = (self.count, self.count)
        return scipy.sparse.csr_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=shape)

    def __len__(self) -> int:
        return len(self.rows)


def _keys(count: int, rows: Tensor, columns: Tensor) -> Tensor:
    return torch.maximum(rows, columns) * count + torch.minimum(rows, columns)
