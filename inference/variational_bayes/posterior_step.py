"""The M-step of variational Bayes: the posteriors of the parameters given expected statistics.

Coordinate ascent, like the conditional maximisations of EM: locations first, then their scales,
given the newest of the others; at last the points, numerically, with the posteriors held. No step
lowers the bound.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.factors.tied import TiedFactors
from ember.inference.families.kinds import MATRIX, RATE
from ember.inference.maximisation.closed_form import ClosedForm
from ember.inference.maximisation.numerical import numerical_update
from ember.inference.maximisation.parameter_plan import ParameterPlan
from ember.inference.maximisation.updates import How, Update, tied_factors_of, updates
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.variational_bayes.choice import Choice, as_density
from ember.inference.variational_bayes.expected_factors import SQUARES, corrections_of
from ember.inference.variational_bayes.given_scale import GivenScale
from ember.inference.variational_bayes.posterior import Posterior

__all__ = ["PosteriorStep"]

Params = Mapping[str, Tensor]


class PosteriorStep:
    """The update of every posterior, laid out once.

    Args:
        plan: The plan at points.
        posterior: That of the posteriors.
        choice: Which parameters have one.
    """

    def __init__(self, plan: Plan, posterior: Plan, choice: Choice) -> None:
        self.posteriors = choice.posteriors
        self._parameters = ParameterPlan.of(plan, False)
        self._tied = plan.tied
        self._updates = [u for u in updates(plan) if u.name in self.posteriors]
        self._closed = {u.name: ClosedForm(self._parameters, u) for u in self._updates}
        moved = [u for u in updates(plan) if u.how is not How.FIXED]
        self._points = [u.name for u in moved if u.name not in self.posteriors]
        self._of_points = ParameterPlan.of(posterior, bool(self._points))

    def __call__(self, statistics: Statistics) -> dict[str, Tensor]:
        """Posteriors, and points, that raise the bound as far as each update can."""
        params = dict(statistics.params)
        sums = {key: (self._tied[key], own) for key, (_, own) in statistics.sums.items()}
        at_points = dataclasses.replace(statistics, sums=sums, prior=self._parameters.prior)
        with torch.no_grad():
            for update in self._updates:
                params.update(self._posterior(update, at_points, params))
        if self._points:
            params = numerical_update(self._of_points, self._points, statistics, params)
        return params

    def _posterior(
        self, update: Update, statistics: Statistics, params: Params
    ) -> dict[str, Tensor]:
        posterior = self.posteriors[update.name]
        if posterior.kind.has_origin:
            return self._location(posterior, statistics, params)
        coefficients, _ = self._closed[update.name].coefficients(statistics, params)
        if posterior.kind in (RATE, MATRIX):
            coefficients = self._of_scale(update, posterior, coefficients, statistics, params)
        return posterior.of(coefficients)

    def _location(
        self, posterior: Posterior, statistics: Statistics, params: Params
    ) -> dict[str, Tensor]:
        """As a step from the present mean, which loses no digits to the distance from zero."""
        if isinstance(posterior, GivenScale):
            params = posterior.at_unit_scale(params)
        origin = params[posterior.name]
        closed = self._closed[posterior.name]
        coefficients, _ = closed.coefficients(statistics, params, origin)
        found = posterior.of(coefficients)
        return {**found, posterior.name: origin + found[posterior.name]}

    def _of_scale(
        self,
        update: Update,
        posterior: Posterior,
        coefficients: list[Tensor],
        statistics: Statistics,
        params: Params,
    ) -> list[Tensor]:
        """The coefficients of a precision, locations integrated out instead of at their means."""
        a, b = as_density(posterior.kind, posterior.link, coefficients)
        share = 0.5 if posterior.kind == RATE else 1.0
        for other in self.posteriors.values():
            if isinstance(other, GivenScale) and other.scale.name == posterior.name:
                a = a - share * torch.bincount(other.rows, minlength=len(a)).to(a)
        for usage in update.usages:
            tied = tied_factors_of(self._parameters, usage)
            if usage.prior is None and usage.position == 1:
                added = self._spread(tied, statistics.sums[usage.where][1], params)
                if added is not None:
                    moved = tied.rows(1, usage.start, len(b))
                    if moved is not None:
                        cells, rows = moved
                        added = torch.zeros_like(b).index_add_(0, rows, added[cells])
                    b = b + added
        return [a, b]

    def _spread(self, tied: TiedFactors, sums: Tensor, params: Params) -> Tensor | None:
        """What squares about a location gain by its own variance, in each cell."""
        place = SQUARES.get(type(tied.family))
        if place is None:
            return None
        found = corrections_of(tied, 0, self.posteriors, params)
        if found is None:
            return None
        variance, count = found[:, :-1], sums[:, place]
        if tied.parameters[1].kind == MATRIX:
            dim = round(variance.shape[1] ** 0.5)
            return count[:, None, None] * variance.reshape(-1, dim, dim)
        return 0.5 * count * variance[:, 0]
