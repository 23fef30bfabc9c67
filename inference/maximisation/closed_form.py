"""Closed-form updates: the coefficients of all that a parameter feeds, added and maximised."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.families.conjugacy import pseudo_statistics
from ember.inference.families.kinds import Kind
from ember.inference.families.superposition import Superposed
from ember.inference.maximisation.degeneracy import check_maximiser
from ember.inference.maximisation.least_squares import solve_coefficients
from ember.inference.maximisation.parameter_plan import ParameterPlan
from ember.inference.maximisation.updates import Update, Usage, tied_factors_of
from ember.inference.numerics.shapes import append_dims
from ember.inference.plan.statistics import Statistics

__all__ = ["closed_form", "coefficients_update"]


def closed_form(
    plan: ParameterPlan, update: Update, statistics: Statistics, params: Mapping[str, Tensor]
) -> Tensor:
    """Sum the coefficients over all sites that a parameter feeds, add the prior's, and maximise.

    Of a location it is the step from its present value that is found, which loses no digits to the
    distance from zero.
    """
    kind, name, current = update.kind, update.name, params[update.name]
    assert kind is not None
    shape = plan.parameters[name].shape
    rows_shape = shape[: len(shape) - kind.event_dim]
    origin = current if kind.has_origin else None
    total, floor = _coefficients(plan, update, kind, statistics, params)
    for i, pseudo in enumerate(_pseudo(plan, update, kind, params, origin)):
        spread = pseudo.expand(rows_shape + total[i].shape[1:])
        total[i] = total[i] + spread.reshape(total[i].shape)
    idle = torch.zeros(())
    if all(isinstance(tied_factors_of(plan, usage).family, Superposed) for usage in update.usages):
        # An entry that feeds no observation: every value is a maximiser, the present one too.
        idle = (total[0] == 0.0) & (total[1] == 0.0)
        total = [torch.where(idle, 1.0, coefficient) for coefficient in total]
    verdict = kind.degenerate(total, floor, has_prior=name in plan.priors)
    check_maximiser(name, rows_shape, verdict, plan.objective)
    value = kind.maximiser(total, update.link).reshape(shape)
    if origin is not None:
        value = origin + value
    if kind.keeps_unseen and bool(torch.isnan(value).any()):
        # No observation: every value is a maximiser, the present one too.
        value = torch.where(torch.isnan(value), current, value)
    if bool(idle.any()):
        value = torch.where(idle.reshape(shape), current, value)
    return value


def _coefficients(
    plan: ParameterPlan,
    update: Update,
    kind: Kind,
    statistics: Statistics,
    params: Mapping[str, Tensor],
) -> tuple[list[Tensor], Tensor]:
    """The coefficients of every row over all sites, and the least variance that data can tell."""
    shape = plan.parameters[update.name].shape
    rows_shape, event = shape[: len(shape) - kind.event_dim], shape[len(shape) - kind.event_dim :]
    count = rows_shape.numel()
    total: list[Tensor] = []
    floor = torch.zeros((count, *event[:1]))
    for usage in update.usages:
        tied, sums = _sums(plan, usage, statistics, params)
        moved = tied.rows(usage.position, usage.start, count)
        cells, rows = moved or (torch.arange(count), torch.arange(count))
        origin = None
        if kind.has_origin:
            current = params[update.name].reshape(count, *event)
            origin = current.new_zeros((len(tied.cells), *event))
            origin[cells] = current[rows]
        coefficients = tied.contribution(usage.position, sums, params, origin)
        if moved is not None:
            coefficients = [
                c.new_zeros((count, *c.shape[1:])).index_add_(0, rows, c[cells])
                for c in coefficients
            ]
        total = [a + b for a, b in zip(total, coefficients, strict=True)] if total else coefficients
        if usage.position == 1 and (least := tied.resolution()) is not None:
            index = rows.reshape(-1, *(1,) * (floor.dim() - 1)).expand(least[cells].shape)
            floor.scatter_reduce_(0, index, least[cells], "amax")
    return total, floor


def coefficients_update(
    plan: ParameterPlan,
    update: Update,
    every: Sequence[Update],
    statistics: Statistics,
    params: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The joint update of a block of coefficients, made when its first member is due."""
    if update.name != update.together[0]:
        return {}
    usages: dict[tuple[TieKey, str | None, int], Usage] = {}
    for other in every:
        if other.name in update.together:
            usages.update({(u.where, u.prior, u.position): u for u in other.usages})
    pooled = [(usage, *_sums(plan, usage, statistics, params)) for usage in usages.values()]
    return solve_coefficients(plan, update.together, pooled, params)


def _sums(
    plan: ParameterPlan, usage: Usage, statistics: Statistics, params: Mapping[str, Tensor]
) -> tuple[TiedFactors, Tensor]:
    """The statistics of what a parameter feeds; a prior's follow from the parameters."""
    if usage.prior is None:
        return statistics.sums[usage.where]
    return plan.prior.statistics(usage.prior, params)


def _pseudo(
    plan: ParameterPlan,
    update: Update,
    kind: Kind,
    params: Mapping[str, Tensor],
    origin: Tensor | None,
) -> list[Tensor]:
    """What the prior of a parameter adds to its coefficients, and a Jacobian where that counts."""
    prior = plan.priors.get(update.name)
    if prior is None or prior.site.density is None:
        return []
    added = pseudo_statistics(kind, update.link, prior.site.density.distribution(params), origin)
    assert added is not None
    weight = prior.scale
    if prior.site.mask is not None:
        weight = weight * prior.site.mask
    more = kind.jacobian(update.link) if plan.prior.unconstrained else []
    both = list(zip(added, more or [0.0] * len(added), strict=True))
    if not weight.dim():
        return [weight * pseudo + jacobian for pseudo, jacobian in both]
    shape = plan.parameters[update.name].shape
    lead = len(shape) - kind.prior_event_dim
    full = weight.expand(shape[:lead])
    return [
        append_dims(full, max(pseudo.dim() - lead, 0)) * pseudo + jacobian
        for pseudo, jacobian in both
    ]
