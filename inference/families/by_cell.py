"""Families of sites whose arguments are known cell by cell, however they have been computed.

Here an argument is nothing that a closed form could be found for: all that is asked of a family is
how the arguments of a cell become natural parameters, and data sufficient statistics. Where a
distribution was given logits, natural parameters are made of those, which lose no digits far out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.discrete import (
    COUNTED,
    Bernoulli,
    Categorical,
    CountStatistics,
    EventStatistics,
)
from ember.inference.families.family import Family, Values
from ember.inference.families.kinds import PROBABILITY, SIMPLEX
from ember.inference.families.links import IDENTITY, Link, Power
from ember.inference.families.normal import Normal, NormalData, NormalStatistics
from ember.inference.families.rates import PoissonStatistics, Rate
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import compact, unexpanded

__all__ = ["CellFamily", "LogitBernoulli", "LogitCategorical", "family_by_cell"]


class LogitBernoulli(Family):
    """``T = (a, b)``: successes and failures of an event, by the logarithm of its odds."""

    kinds = (PROBABILITY,)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (logits,) = values
        sigmoid = torch.nn.functional.logsigmoid
        return torch.stack([sigmoid(logits), sigmoid(-logits)], -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]


class LogitCategorical(Family):
    """``T = counts``: how often each of ``K`` categories occurred, by their logits."""

    kinds = (SIMPLEX,)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        return values[0].log_softmax(-1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        return [statistics]


@dataclass(frozen=True)
class CellFamily:
    """A family, the arguments that it reads, and the sufficient statistics of data.

    Attributes:
        family: The family.
        arguments: Of each of its parameters the argument of the distribution, and the link.
        statistics: As of an ``ExponentialForm``.
        event_dim: The dims of an event.
        argument_dim: The dims of an argument of one event.
        centred: As of an ``ExponentialForm``.
    """

    family: Family
    arguments: tuple[tuple[str, Link], ...]
    statistics: Callable[[Tensor, Any], tuple[Tensor, Tensor | None]]
    event_dim: int = 0
    argument_dim: int = 0
    centred: Callable[[Tensor], Tensor] | None = None


def family_by_cell(base: Distribution) -> CellFamily | str:
    """The family of a distribution, or why its cells have no sufficient statistics."""
    if isinstance(base, COUNTED):
        holder: Any = getattr(base, "_categorical", base)
        by = "probs" if "probs" in holder.__dict__ else "logits"
        levels = holder._param.shape[-1] if isinstance(base, dist.Categorical) else None
        counts = CountStatistics(levels, isinstance(base, dist.Multinomial))
        family = Categorical() if by == "probs" else LogitCategorical()
        return CellFamily(family, ((by, IDENTITY),), counts, len(base.event_shape), 1)
    if isinstance(base, (dist.Bernoulli, dist.Binomial)):
        by = "probs" if "probs" in base.__dict__ else "logits"
        is_binomial = isinstance(base, dist.Binomial)
        total = compact(unexpanded(base.total_count)) if is_binomial else torch.ones(())
        swapped = torch.zeros((), dtype=torch.bool)
        events = EventStatistics(total, swapped, is_binomial)
        odds = Bernoulli() if by == "probs" else LogitBernoulli()
        return CellFamily(odds, ((by, IDENTITY),), events)
    if type(base) is dist.Poisson:
        return CellFamily(Rate(), (("rate", IDENTITY),), PoissonStatistics(torch.ones(())))
    if type(base) is dist.Normal:
        data = NormalData(torch.zeros(()), is_log=False)
        arguments = (("loc", IDENTITY), ("scale", Power(-2.0)))
        return CellFamily(Normal(), arguments, NormalStatistics(data), centred=data.values)
    return f"{type(base).__name__} has no sufficient statistics"
