r"""The sufficient statistics of rows, a column for each row, formed when they are asked for.

Those of a normal vector are the products of its entries, ``D (D + 1) / 2`` numbers where the data
are ``D``. Held are the data alone, and *features* of them are formed a chunk of columns at a time:

.. math:: \eta^\top T(x) = c + l^\top f(x),

with the constant statistic, which is 1 in every row, left out of the features :math:`f`. The
families whose statistics are no such products hold the statistics themselves, and their features
are these.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NOTHING", "Columns", "ScalarColumns", "VectorColumns"]


KEPT_BYTES = 16_000_000  # of statistics of all rows, which are formed once if they are no more
NOTHING = -1  # in place of a row of the data: there is no such factor


@dataclass(frozen=True)
class Columns:
    """Statistics that are held as they are, ``(P, N)``.

    Attributes:
        data: What is held, ``(M, N)``.
    """

    data: Tensor

    @property
    def features(self) -> int:
        """The number ``F`` of features of a row."""
        return len(self.data)

    @property
    def factors(self) -> Tensor:
        """The rows of the data whose product is each feature, ``(2, F)``; the second may be none.

        ``NOTHING`` stands for none.
        """
        rows = torch.arange(len(self.data))
        return torch.stack([rows, torch.full_like(rows, NOTHING)])

    @property
    def matrix(self) -> Tensor:
        """The statistics of all rows, ``(P, N)``."""
        return self.data

    def form(self, start: int, stop: int, out: Tensor) -> None:
        """Writes the features of some rows into ``out``, ``(F, n)``."""
        out.copy_(self.data[:, start:stop])

    def parted(self, eta: Tensor) -> tuple[Tensor | None, Tensor]:
        """Natural parameters ``(..., P)`` as a constant ``(...)`` and what features count for.

        The constant is None where every statistic is a feature.
        """
        return None, eta

    def joined(self, counts: Tensor, sums: Tensor) -> Tensor:
        """Weights of rows ``(...)`` and sums ``(..., F)`` of their features as statistics."""
        return sums


@dataclass(frozen=True)
class _Formed(Columns):
    """Statistics that are products of the data's rows."""

    @property
    def matrix(self) -> Tensor:
        return self._kept if self._size <= KEPT_BYTES else self._formed()

    @property
    def _size(self) -> int:
        return self.features * self.data[0].numel() * self.data.element_size()

    @functools.cached_property
    def _kept(self) -> Tensor:
        return self._formed()

    def _formed(self) -> Tensor:
        features = self.data.new_empty(self.features, self.data.shape[1])
        self.form(0, self.data.shape[1], features)
        ones = torch.ones_like(features[0])
        return self.joined(ones, features.T).T.contiguous()


@dataclass(frozen=True)
class ScalarColumns(_Formed):
    """``D`` independent normals, each with ``T = (1, x, x^2)``: the statistics of one by one.

    The features are all entries, then all squares.
    """

    @property
    def features(self) -> int:
        return 2 * len(self.data)

    @property
    def factors(self) -> Tensor:
        rows = torch.arange(len(self.data))
        return torch.stack([rows.repeat(2), torch.cat([torch.full_like(rows, NOTHING), rows])])

    def form(self, start: int, stop: int, out: Tensor) -> None:
        x, size = self.data[:, start:stop], len(self.data)
        out[:size].copy_(x)
        torch.mul(x, x, out=out[size:])

    def parted(self, eta: Tensor) -> tuple[Tensor | None, Tensor]:
        each = eta.unflatten(-1, (-1, 3))
        return each[..., 0].sum(-1), each[..., 1:].mT.flatten(-2)

    def joined(self, counts: Tensor, sums: Tensor) -> Tensor:
        each = sums.unflatten(-1, (2, -1)).mT
        ones = counts[..., None, None].expand(*each.shape[:-1], 1)
        return torch.cat([ones, each], -1).flatten(-2)


@dataclass(frozen=True)
class VectorColumns(_Formed):
    """A normal vector with ``T = (1, x, vech(x x'))``; the features are all but the first."""

    @property
    def features(self) -> int:
        size = len(self.data)
        return size + size * (size + 1) // 2

    @property
    def factors(self) -> Tensor:
        size = len(self.data)
        rows, pairs = torch.arange(size), torch.triu_indices(size, size)
        return torch.cat([torch.stack([rows, torch.full_like(rows, NOTHING)]), pairs], 1)

    def form(self, start: int, stop: int, out: Tensor) -> None:
        x, size = self.data[:, start:stop], len(self.data)
        out[:size].copy_(x)
        place = size
        for i in range(size):
            torch.mul(x[i], x[i:], out=out[place : place + size - i])
            place += size - i

    def parted(self, eta: Tensor) -> tuple[Tensor | None, Tensor]:
        return eta[..., 0], eta[..., 1:]

    def joined(self, counts: Tensor, sums: Tensor) -> Tensor:
        return torch.cat([counts.unsqueeze(-1), sums], -1)
