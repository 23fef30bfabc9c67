"""Bernoulli, categorical and their counts: probabilities of what is counted."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.exponential_form import (
    ExponentialForm,
    FamilyParameter,
    Maps,
    Names,
    exponential_form,
    with_constants,
)
from ember.inference.families.family import Family, Values
from ember.inference.families.kinds import PROBABILITY, SIMPLEX, STICKS
from ember.inference.families.links import IDENTITY, SIGMOID, SOFTMAX, Link
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.log_space import IMPOSSIBLE, log_chance
from ember.inference.numerics.shapes import compact
from ember.inference.parameters.argument_map import ArgumentMap

__all__ = ["COUNTED", "Bernoulli", "Categorical", "CountStatistics", "Sticks"]


class Bernoulli(Family):
    """``T = (a, b)``: successes and failures of an event with probability ``p``."""

    kinds = (PROBABILITY,)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (p,) = values
        never = torch.log1p(-torch.where(p < 1.0, p, 0.0))  # exact for the smallest chances too
        return torch.stack([log_chance(p), torch.where(p < 1.0, never, IMPOSSIBLE)], -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]


class Sticks(Family):
    """``T = (a, b)``: successes and failures of ``J`` events with probabilities ``p``."""

    kinds = (STICKS,)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (p,) = values
        return torch.cat([log_chance(p), log_chance(1.0 - p)], -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        return list(statistics.chunk(2, -1))


class Categorical(Family):
    """``T = counts``: how often each of ``K`` categories occurred."""

    kinds = (SIMPLEX,)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        return log_chance(values[0])

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        return [statistics]


COUNTED = (dist.Categorical, dist.OneHotCategorical, dist.Multinomial)


@dataclass(frozen=True, eq=False)
class EventStatistics:
    """Successes and failures, where ``swapped`` the other way round.

    Of a geometric distribution every trial but the last has failed, and ``total`` is None.
    """

    total: Tensor | None
    swapped: Tensor
    is_binomial: bool

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        if self.total is None:
            a, b = torch.ones_like(x), x
        else:
            a, b = x, self.total - x
        h = None
        if self.is_binomial:
            assert self.total is not None
            h = torch.lgamma(self.total + 1.0) - torch.lgamma(a + 1.0) - torch.lgamma(b + 1.0)
        a, b, swapped = torch.broadcast_tensors(a, b, self.swapped)
        if not bool(self.swapped.any()):
            return torch.stack([a, b], -1), h
        return torch.stack([torch.where(swapped, b, a), torch.where(swapped, a, b)], -1), h


@exponential_form(dist.Bernoulli, dist.Binomial, dist.Geometric)
def _bernoulli(base: Distribution, maps: Maps, names: Names) -> ExponentialForm | str:
    if "total_count" in maps and not maps["total_count"].is_constant:
        return "the total count depends on a parameter"
    bound = _success(maps["probs"])
    if isinstance(bound, str):
        return bound
    parameter, index, complement = bound
    total = compact(maps["total_count"].offset) if "total_count" in maps else torch.ones(())
    statistics = EventStatistics(
        None if isinstance(base, dist.Geometric) else total,
        complement,
        isinstance(base, dist.Binomial),
    )
    return ExponentialForm(Bernoulli(), (parameter,), (index,), statistics)


def _success(found: ArgumentMap) -> tuple[FamilyParameter, Tensor, Tensor] | str:
    """Parameter, index and the entries at which the argument is the complement ``1 - p`` of it."""
    none = torch.zeros((), dtype=torch.bool)
    if found.table is None:
        values, index = torch.unique(found.offset, return_inverse=True)
        return FamilyParameter(PROBABILITY, None, constants=values), index, none
    c, b = found.coefficient, found.offset
    link: Link = SIGMOID if found.space == "logit" else IDENTITY
    fixed, complement = c == 0.0, (c == -1.0) & (b == 1.0)
    if link is SIGMOID:
        complement = none
    if not bool((fixed | complement | ((c == 1.0) & (b == 0.0))).all()):
        return "the probability is neither p, 1 - p nor sigmoid of a parameter"
    parameter = FamilyParameter(PROBABILITY, found.table, link)
    if not bool(fixed.any()):
        return parameter, found.index, compact(complement)
    full, index, _ = with_constants(parameter, found, link.forward(b), multiplies=False)
    return full, index, compact(complement)


@dataclass(frozen=True, eq=False)
class CountStatistics:
    """How often each category occurs in data.

    Attributes:
        levels: The number of categories where data are their numbers; None where they are counts.
        is_multinomial: Whether data are counts of many draws, whose order is not known.
    """

    levels: int | None
    is_multinomial: bool

    @staticmethod
    def of(base: Distribution) -> "CountStatistics":
        """Those of a distribution over categories."""
        levels = base.probs.shape[-1] if isinstance(base, dist.Categorical) else None
        return CountStatistics(levels, isinstance(base, dist.Multinomial))

    def __call__(self, x: Tensor, reference: Tensor | float = 0.0) -> tuple[Tensor, Tensor | None]:
        if self.levels is not None:
            return torch.nn.functional.one_hot(x.long(), self.levels).to(torch.float64), None
        if self.is_multinomial:
            return x, torch.lgamma(x.sum(-1) + 1.0) - torch.lgamma(x + 1.0).sum(-1)
        return x, None


@exponential_form(*COUNTED)
def _categorical(base: Distribution, maps: Maps, names: Names) -> ExponentialForm | str:
    found = maps["probs"]
    if found.table is None:
        flat = found.offset.reshape(-1, found.offset.shape[-1])
        parameter = FamilyParameter(SIMPLEX, None, constants=flat)
        index = torch.arange(len(flat)).reshape(found.offset.shape[:-1])
    elif not bool((found.coefficient == 1.0).all()):
        return "the probabilities mix parameters with constants"
    else:
        link = SOFTMAX if found.table.on == "softmax" else IDENTITY
        parameter = FamilyParameter(SIMPLEX, found.table.untransformed, link)
        index = found.index
    statistics, event_dim = CountStatistics.of(base), len(base.event_shape)
    return ExponentialForm(Categorical(), (parameter,), (index,), statistics, event_dim)
