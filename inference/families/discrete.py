"""Bernoulli, categorical and their counts: probabilities of what is counted."""

from typing import Any

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
from ember.inference.families.family import Family
from ember.inference.numerics.log_space import IMPOSSIBLE, log_chance
from ember.inference.numerics.shapes import compact
from ember.inference.parameters.argument_map import ArgumentMap

__all__ = ["COUNTED", "Bernoulli", "Categorical", "Sticks", "counts_of"]


class Bernoulli(Family):
    """``T = (a, b)``: successes and failures of an event with probability ``p``."""

    kinds = ("probability",)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (p,) = values
        never = torch.log1p(-torch.where(p < 1.0, p, 0.0))  # exact for the smallest chances too
        return torch.stack([log_chance(p), torch.where(p < 1.0, never, IMPOSSIBLE)], -1)

    def contribution(
        self, position: int, statistics: Tensor, values: tuple[Tensor, ...]
    ) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]


class Sticks(Family):
    """``T = (a, b)``: successes and failures of ``J`` events with probabilities ``p``."""

    kinds = ("sticks",)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (p,) = values
        return torch.cat([log_chance(p), log_chance(1.0 - p)], -1)

    def contribution(
        self, position: int, statistics: Tensor, values: tuple[Tensor, ...]
    ) -> list[Tensor]:
        return list(statistics.chunk(2, -1))


class Categorical(Family):
    """``T = counts``: how often each of ``K`` categories occurred."""

    kinds = ("simplex",)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        return log_chance(values[0])

    def contribution(
        self, position: int, statistics: Tensor, values: tuple[Tensor, ...]
    ) -> list[Tensor]:
        return [statistics]


COUNTED = (dist.Categorical, dist.OneHotCategorical, dist.Multinomial)


def _success(found: ArgumentMap) -> tuple[FamilyParameter, Tensor, Tensor] | str:
    """Slot, index and the entries at which the argument is the complement ``1 - p`` of it."""
    no_rows, none = torch.zeros(0), torch.zeros((), dtype=torch.bool)
    if found.table is None:
        values, index = torch.unique(found.offset, return_inverse=True)
        return FamilyParameter("probability", None, "constant", 1.0, values), index, none
    c, b = found.coefficient, found.offset
    fixed, complement = c == 0.0, (c == -1.0) & (b == 1.0)
    link = "sigmoid" if found.space == "logit" else "identity"
    if link == "sigmoid":
        complement = none
    if not bool((fixed | complement | ((c == 1.0) & (b == 0.0))).all()):
        return "the probability is neither p, 1 - p nor sigmoid of a parameter"
    family_parameter = FamilyParameter("probability", found.table, link, 1.0, no_rows)
    if not bool(fixed.any()):
        return family_parameter, found.index, compact(complement)
    constants = torch.sigmoid(b) if link == "sigmoid" else b
    full, index, _ = with_constants(family_parameter, found, constants, multiplies=False)
    return full, index, compact(complement)


@exponential_form(dist.Bernoulli, dist.Binomial, dist.Geometric)
def _bernoulli(base: Any, maps: Maps, names: Names) -> ExponentialForm | str:
    if "total_count" in maps and not maps["total_count"].is_constant:
        return "the total count depends on a parameter"
    bound = _success(maps["probs"])
    if isinstance(bound, str):
        return bound
    family_parameter, index, complement = bound
    total = compact(maps["total_count"].offset) if "total_count" in maps else torch.ones(())

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        if isinstance(base, dist.Geometric):
            a, b, h = torch.ones_like(x), x, None
        else:
            a, b, h = x, total - x, None
        if isinstance(base, dist.Binomial):
            h = torch.lgamma(total + 1.0) - torch.lgamma(a + 1.0) - torch.lgamma(b + 1.0)
        a, b, swapped = torch.broadcast_tensors(a, b, complement)
        pair = torch.where(swapped, b, a), torch.where(swapped, a, b)
        return torch.stack(pair, -1), h

    return ExponentialForm(Bernoulli(), (family_parameter,), (index,), statistics)


def counts_of(base: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """How often each category occurs in data, and the base measure, or None where it is zero."""
    if isinstance(base, dist.Categorical):
        levels = base.probs.shape[-1]
        return torch.nn.functional.one_hot(x.long(), levels).to(base.probs.dtype), None
    if isinstance(base, dist.Multinomial):
        return x, torch.lgamma(x.sum(-1) + 1.0) - torch.lgamma(x + 1.0).sum(-1)
    return x, None


@exponential_form(*COUNTED)
def _categorical(base: Any, maps: Maps, names: Names) -> ExponentialForm | str:
    found = maps["probs"]
    if found.table is None:
        flat = found.offset.reshape(-1, found.offset.shape[-1])
        family_parameter = FamilyParameter("simplex", None, "constant", 1.0, flat)
        index = torch.arange(len(flat)).reshape(found.offset.shape[:-1])
    elif not bool((found.coefficient == 1.0).all()):
        return "the probabilities mix parameters with constants"
    else:
        family_parameter = FamilyParameter("simplex", found.table, "identity", 1.0, torch.zeros(0))
        index = found.index

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        return counts_of(base, x)

    event_dim = 0 if isinstance(base, dist.Categorical) else 1
    return ExponentialForm(Categorical(), (family_parameter,), (index,), statistics, event_dim)
