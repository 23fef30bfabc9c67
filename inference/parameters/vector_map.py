"""Vectors that are linear in features, with coefficients gathered from parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.parameters.affine_map import ParameterEntries

__all__ = ["Terms", "VectorMap"]


@dataclass(frozen=True)
class Terms:
    """Where the coefficients of a vector stand: coefficient ``j`` multiplies a feature in an entry.

    Attributes:
        rows: The entry of the vector to which each belongs.
        columns: The feature that each multiplies.
        shape: The numbers of entries and of features, ``(D, F)``.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    shape: tuple[int, int]

    def matrix(self, coefficients: Tensor) -> Tensor:
        """``B (..., D, F)`` from coefficients ``(..., J)``; zero where there is none."""
        each = zip(self.rows, self.columns, strict=True)
        places = [row * self.shape[1] + column for row, column in each]
        index = torch.tensor(places, device=coefficients.device)
        flat = coefficients.new_zeros(*coefficients.shape[:-1], self.shape[0] * self.shape[1])
        flat = flat.index_copy(-1, index, coefficients)
        return flat.reshape(*coefficients.shape[:-1], *self.shape)


@dataclass(frozen=True)
class VectorMap:
    """A vector as ``B[index] @ features + offset``.

    ``features (*batch, F)`` and ``offset (*batch, D)`` have the argument's batch shape; ``index``
    names the row of coefficients of every vector.
    """

    domain: str
    table: ParameterEntries
    terms: Terms
    index: Tensor
    features: Tensor
    offset: Tensor

    @property
    def is_constant(self) -> bool:
        return False

    @property
    def sources(self) -> tuple[str, ...]:
        return self.table.sources

    def matrix(self, params: Mapping[str, Tensor]) -> Tensor:
        """``B`` of every vector, ``(*batch, D, F)``, broadcast dims of size 1."""
        return self.terms.matrix(self.table.rows(params))[self.index]

    def evaluate(self, params: Mapping[str, Tensor]) -> Tensor:
        """The vectors at ``params``, broadcast dims of size 1."""
        moved: Tensor = (self.matrix(params) @ self.features.unsqueeze(-1)).squeeze(-1)
        return moved + self.offset
