"""One EM iteration seen as a map of parameters, and what a step of it reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.iteration.convergence import Movement
from ember.inference.plan.statistics import Statistics

__all__ = ["EMMap", "Iterate", "Step", "is_finite"]


class EMMap:
    """The two halves of an EM iteration, and a count of passes over the data."""

    def __init__(
        self,
        e_step: Callable[[Mapping[str, Tensor]], Statistics],
        m_step: Callable[[Statistics], dict[str, Tensor]],
    ) -> None:
        self._e_step, self.m_step = e_step, m_step
        self.evaluations = 0

    def e_step(self, params: Mapping[str, Tensor]) -> Statistics:
        """One pass over the data."""
        self.evaluations += 1
        return self._e_step(params)


@dataclass(frozen=True)
class Step:
    """Where an iteration ended, and the EM movement seen on the way."""

    statistics: Statistics
    movement: Movement


Iterate = Callable[[Statistics], Step]


def is_finite(params: Mapping[str, Tensor]) -> bool:
    """Whether all entries of all parameters are finite."""
    return all(bool(torch.isfinite(value).all()) for value in params.values())
