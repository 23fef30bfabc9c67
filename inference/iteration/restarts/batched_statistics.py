"""What the E-step says at several parameter values, stacked along a leading dim of starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ember.inference.factors.tied import TieKey

__all__ = ["BatchedStatistics", "chosen", "joined", "mixed"]


K = TypeVar("K")


def joined(each: Sequence[Mapping[K, Tensor]]) -> dict[K, Tensor]:
    """The values of every start, stacked."""
    return {key: torch.stack([values[key] for values in each]) for key in each[0]}


def chosen(stacked: Mapping[K, Tensor], which: int | slice | list[int]) -> dict[K, Tensor]:
    """The values of one start (a number), or of some of them (a list or a slice)."""
    return {key: value[which] for key, value in stacked.items()}


def mixed(where: Tensor, one: Mapping[K, Tensor], other: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """One's values for the starts marked, the other's for the rest."""
    return {
        key: torch.where(where.reshape(-1, *(1,) * (value.dim() - 1)), value, other[key])
        for key, value in one.items()
    }


@dataclass(frozen=True)
class BatchedStatistics:
    """Parameters ``(R, ...)``, and what the E-step says at each of them.

    Attributes:
        params: The parameters.
        sums: The statistics of all tied factors, ``(R, C, P)``.
        weights: The posteriors ``(R, ...)`` of factors without sufficient statistics, by name.
        objectives: ``(R,)``.
        unsure: Starts whose data lie too far from the one reference that all share, ``(R,)``; see
            ``factors/residuals/normal.py``. They must go on alone.
    """

    params: dict[str, Tensor]
    sums: dict[TieKey, Tensor]
    weights: dict[str, Tensor]
    objectives: Tensor
    unsure: Tensor

    def __len__(self) -> int:
        return len(self.objectives)

    def kept(self, places: list[int]) -> "BatchedStatistics":
        """Those of some of the starts."""
        return BatchedStatistics(
            chosen(self.params, places),
            chosen(self.sums, places),
            chosen(self.weights, places),
            self.objectives[places],
            self.unsure[places],
        )

    def where(self, marked: Tensor, other: "BatchedStatistics") -> "BatchedStatistics":
        """These for the starts marked, the others for the rest."""
        return BatchedStatistics(
            mixed(marked, self.params, other.params),
            mixed(marked, self.sums, other.sums),
            mixed(marked, self.weights, other.weights),
            torch.where(marked, self.objectives, other.objectives),
            torch.where(marked, self.unsure, other.unsure),
        )
