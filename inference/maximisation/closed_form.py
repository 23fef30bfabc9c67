"""Closed-form updates: the coefficients of all that a parameter feeds, added and maximised."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.families.conjugacy import pseudo_statistics
from ember.inference.families.kinds import Kind
from ember.inference.families.links import Link
from ember.inference.families.superposition import Superposed
from ember.inference.maximisation.degeneracy import check_maximiser
from ember.inference.maximisation.least_squares import solve_coefficients
from ember.inference.maximisation.parameter_plan import ParameterPlan
from ember.inference.maximisation.updates import Update, Usage, tied_factors_of
from ember.inference.numerics.shapes import append_dims
from ember.inference.plan.statistics import Statistics
from ember.inference.reading.site import DistributionTemplate

__all__ = ["ClosedForm", "PriorCoefficients", "coefficients_update"]


class ClosedForm:
    """The closed-form update of one parameter, laid out once for a plan.

    The coefficients of the parameter's kind are summed over all that it feeds, its prior's are
    added, and the kind has the maximiser. Of a location it is the step from its present value that
    is found, which loses no digits to the distance from zero.
    """

    def __init__(self, plan: ParameterPlan, update: Update) -> None:
        assert update.kind is not None
        self._plan, self._update, self._kind = plan, update, update.kind
        start = plan.parameters[update.name].start
        shape = plan.parameters[update.name].shape
        lead = len(shape) - self._kind.event_dim
        self._shape, self._rows, self._event = shape, shape[:lead], shape[lead:]
        self._count = self._rows.numel()
        self._no_floor = start.new_zeros((self._count, *self._event[:1]))
        tied = [tied_factors_of(plan, usage) for usage in update.usages]
        self._may_idle = all(isinstance(each.family, Superposed) for each in tied)
        self._prior = PriorCoefficients.of(plan, update, self._kind)

    def __call__(self, statistics: Statistics, params: Mapping[str, Tensor]) -> Tensor:
        """The new value.

        Raises:
            Degenerate: If a row has no finite maximiser.
        """
        name, kind, current = self._update.name, self._kind, params[self._update.name]
        origin = current if kind.has_origin else None
        total, floor = self.coefficients(statistics, params, origin)
        idle = None
        if self._may_idle:
            # An entry that feeds no observation: every value is a maximiser, the present one too.
            idle = (total[0] == 0.0) & (total[1] == 0.0)
            total = [torch.where(idle, 1.0, coefficient) for coefficient in total]
        verdict = kind.degenerate(total, floor, has_prior=name in self._plan.priors)
        check_maximiser(name, self._rows, verdict, self._plan.objective)
        value = kind.maximiser(total, self._update.link).reshape(self._shape)
        if origin is not None:
            value = origin + value
        if kind.keeps_unseen and bool(value.isnan().any()):
            # No observation: every value is a maximiser, the present one too.
            value = torch.where(torch.isnan(value), current, value)
        return value if idle is None else torch.where(idle.reshape(self._shape), current, value)

    def coefficients(
        self,
        statistics: Statistics,
        params: Mapping[str, Tensor],
        origin: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Those of every row, prior included, and the least variance that data can tell.

        Args:
            statistics: The expected statistics.
            params: The parameters that the coefficients depend on.
            origin: From where a location is measured, instead of from zero.
        """
        total, floor = self._of_data(statistics, params, origin)
        if self._prior is not None:
            for i, added in enumerate(self._prior(params, origin)):  # nothing if it is flat
                if added.shape != total[i].shape:
                    spread = added.expand(self._rows + total[i].shape[1:])
                    added = spread.reshape(total[i].shape)
                total[i] = total[i] + added
        return total, floor

    def _of_data(
        self, statistics: Statistics, params: Mapping[str, Tensor], origin: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """The coefficients over all sites."""
        count, total, floor = self._count, list[Tensor](), self._no_floor
        squares: Tensor | None = None
        for usage in self._update.usages:
            tied, sums = _sums(self._plan, usage, statistics, params)
            moved = tied.rows(usage.position, usage.start, count)
            about = None if origin is None else origin.reshape(count, *self._event)
            if about is not None and moved is not None:
                cells, rows = moved
                spread = about.new_zeros((len(tied.cells), *self._event))
                spread[cells] = about[rows]
                about = spread
            coefficients = tied.contribution(usage.position, sums, params, about)
            kept = tied.least(sums) if usage.position == 1 else None
            coefficients = coefficients if kept is None else [*coefficients, kept]
            least = tied.resolution if usage.position == 1 else None
            if moved is not None:
                cells, rows = moved
                coefficients = [
                    c.new_zeros((count, *c.shape[1:])).index_add_(0, rows, c[cells])
                    for c in coefficients
                ]
                if least is not None:
                    index = rows.reshape(-1, *(1,) * (floor.dim() - 1)).expand(least[cells].shape)
                    floor = floor.scatter_reduce(0, index, least[cells], "amax")
            elif least is not None:
                floor = torch.maximum(floor, least)
            if kept is not None:
                *coefficients, kept = coefficients
                squares = kept if squares is None else squares + kept
            sums_so_far = zip(total, coefficients, strict=True)
            total = [a + b for a, b in sums_so_far] if total else coefficients
        if squares is not None:
            total[1] = torch.maximum(total[1], squares)
        return total, floor


@dataclass(frozen=True)
class PriorCoefficients:
    """What the prior of a parameter adds to its coefficients, and a Jacobian where that counts."""

    kind: Kind
    link: Link
    template: DistributionTemplate
    weight: Tensor
    jacobian: tuple[float, ...]
    constant: list[Tensor] | None = None

    @staticmethod
    def of(plan: ParameterPlan, update: Update, kind: Kind) -> "PriorCoefficients | None":
        """Those of a plan; None where no prior counts."""
        prior = plan.priors.get(update.name)
        if prior is None or prior.site.density is None:
            return None
        weight, shape = prior.scale, plan.parameters[update.name].shape
        if prior.site.mask is not None:
            weight = weight * prior.site.mask
        if weight.dim():
            weight = weight.expand(shape[: len(shape) - kind.prior_event_dim])
        jacobian = tuple(kind.jacobian(update.link)) if plan.prior.unconstrained else ()
        varies = PriorCoefficients(kind, update.link, prior.site.density, weight, jacobian)
        if not prior.site.density.is_constant or kind.has_origin:
            return varies
        return dataclasses.replace(varies, constant=varies({}, None))

    @functools.cached_property
    def _adds_plainly(self) -> bool:
        """Whether every entry counts once, and there is no Jacobian."""
        return not self.jacobian and not self.weight.dim() and float(self.weight) == 1.0

    def __call__(self, params: Mapping[str, Tensor], origin: Tensor | None) -> list[Tensor]:
        """One tensor for each coefficient, batch-shaped; none if the prior is flat."""
        if self.constant is not None:
            return self.constant
        added = pseudo_statistics(self.kind, self.link, self.template.distribution(params), origin)
        assert added is not None
        if self._adds_plainly:
            return added
        each = zip(added, self.jacobian or (0.0,) * len(added), strict=True)
        lead = self.weight.dim()
        if not lead:
            return [self.weight * pseudo + more for pseudo, more in each]
        return [
            append_dims(self.weight, max(pseudo.dim() - lead, 0)) * pseudo + more
            for pseudo, more in each
        ]


def coefficients_update(
    plan: ParameterPlan,
    update: Update,
    every: Sequence[Update],
    statistics: Statistics,
    params: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The joint update of a block of coefficients, made when its first member is due."""
    if update.name != update.block[0]:
        return {}
    usages: dict[tuple[TieKey, str | None, int], Usage] = {}
    for other in every:
        if other.name in update.block:
            usages.update({(u.where, u.prior, u.position): u for u in other.usages})
    pooled = [(usage, *_sums(plan, usage, statistics, params)) for usage in usages.values()]
    return solve_coefficients(plan, update.block, pooled, params)


def _sums(
    plan: ParameterPlan, usage: Usage, statistics: Statistics, params: Mapping[str, Tensor]
) -> tuple[TiedFactors, Tensor]:
    """The statistics of what a parameter feeds; a prior's follow from the parameters."""
    if usage.prior is None:
        return statistics.sums[usage.where]
    return plan.prior.statistics(usage.prior, params)
