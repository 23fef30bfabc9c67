"""The M-step: a closed form for every parameter that has one, a numerical search for the others.

Closed forms are taken one parameter at a time, locations first, each given the newest values of
the others (ECM; Meng & Rubin 1993, Biometrika 80, 267-278). For conjugate pairs such as
Normal-Wishart this order makes the joint mode exact. All remaining parameters are then moved
together by Newton or L-BFGS on the expected log joint, in unconstrained space. Among them are those
of which the closed form lies outside their support, such as a location in an interval; inside it is
the maximiser within the support as well. No step lowers that expected log joint, so the objective
never falls.
"""

import copy
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.maximisation.closed_form import ClosedForm, coefficients_update
from ember.inference.maximisation.degeneracy import check_scales
from ember.inference.maximisation.numerical import Search, SearchOf, numerical_update
from ember.inference.maximisation.parameter_plan import ParameterPlan
from ember.inference.maximisation.updates import How, Update, updates
from ember.inference.parameters.supports import all_within
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["MStep"]


class MStep:
    """The M-step of one plan: the update of every parameter, chosen once.

    It keeps no rows of the data, as long as no prior has to be asked of the model.

    Args:
        plan: The plan.
        chosen: Its updates; found by the plan unless given.
    """

    def __init__(self, plan: Plan, chosen: Sequence[Update] | None = None) -> None:
        self.updates = updates(plan) if chosen is None else tuple(chosen)
        self._search: SearchOf = Search
        searches = (How.NUMERICAL, How.IN_SUPPORT)
        self.is_numerical = any(update.how in searches for update in self.updates)
        self.plan = ParameterPlan.of(plan, self.is_numerical)
        self._closed = {
            update.name: ClosedForm(self.plan, update)
            for update in self.updates
            if update.kind is not None and not update.is_joint
        }
        self._bounded = [
            name
            for name, prior in plan.priors.items()
            if prior.site.density is not None and isinstance(prior.site.density.base, dist.Uniform)
        ]

    def searching(self, search: SearchOf) -> "MStep":
        """The same with other searches for what has no closed form."""
        changed = copy.copy(self)
        changed._search = search
        return changed

    @staticmethod
    def of(plan: Plan) -> "MStep":
        """The M-step of a plan, made at the first call."""
        return plan.once(MStep)

    def __call__(self, statistics: Statistics) -> dict[str, Tensor]:
        """Parameters that raise the expected log joint as far as each update can.

        Raises:
            Degenerate: If a component has collapsed or emptied.
        """
        plan, params = self.plan, dict(statistics.params)
        numeric = [update.name for update in self.updates if update.how is How.NUMERICAL]
        with torch.no_grad():
            for update in self.updates:
                if update.kind is None:
                    continue
                if update.is_joint:
                    found = coefficients_update(plan, update, self.updates, statistics, params)
                else:
                    found = {update.name: self._closed[update.name](statistics, params)}
                if update.how is How.IN_SUPPORT and not all_within(plan.parameters, found):
                    numeric += found
                else:
                    params.update(found)
        if numeric:
            params = numerical_update(plan, numeric, statistics, params, self._search)
            check_scales(statistics, params, plan.objective)
        return self._below_upper_bounds(params)

    def _below_upper_bounds(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Estimates at the upper bound of a ``Uniform`` prior, moved off it by one rounding.

        Torch counts the lower bound to the support and the upper one not: there the density is
        zero.
        """
        for name in self._bounded:
            template = self.plan.priors[name].site.density
            assert template is not None
            bounds = template.distribution(params)
            assert isinstance(bounds, dist.Uniform)
            inside = torch.nextafter(bounds.high, bounds.low).expand_as(params[name])
            params[name] = torch.where(params[name] < bounds.high, params[name], inside)
        return params
