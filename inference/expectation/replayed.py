"""The E-step of a small model, written down once and played back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.opaque import OpaquePosterior
from ember.inference.numerics.replay.replayed import Replayed
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["ReplayedEStep"]


class ReplayedEStep:
    """Gives what ``LogEvidence.statistics`` gives, up to rounding.

    Played back is the arithmetic from parameters to statistics. Where the model has to be asked, or
    nodes move with the parameters, there is nothing to play back; where digits are at stake, sites
    are had by their residuals, as ever.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._evidence = LogEvidence.of(plan)
        self._names = tuple(plan.structure.parameters)
        asks = plan.opaque.asks_the_model or plan.prior.opaque
        moves = any(plan.dependencies(name) for name in plan.structure.nodes)
        self._is_arithmetic = not (asks or moves or plan.units)
        self._opaque = (*plan.opaque.members, *plan.opaque.factors)
        self._placed: Plan | None = None
        self._replayed = Replayed(self._arithmetic)

    @staticmethod
    def of(plan: Plan) -> ReplayedEStep:
        """That of a plan, which keeps it."""
        return plan.once(ReplayedEStep)

    def __call__(self, params: Mapping[str, Tensor]) -> Statistics:
        """The statistics at some parameters."""
        values = [params[name] for name in self._names]
        found = self._replayed(*values) if self._is_arithmetic else None
        if found is None:
            return self._evidence.statistics(params)
        plan, (log_likelihood, log_prior, *rest) = self._plan(params), found
        each = iter(rest)
        sums = {key: (tied, next(each)) for key, tied in plan.tied.items()}
        weights = {name: next(each) for name in self._opaque}
        opaque = (OpaquePosterior(plan.opaque, weights),) if weights else ()
        fixed = {name: params[name].detach() for name in params}
        return Statistics(float(log_likelihood), float(log_prior), fixed, sums, opaque, plan.prior)

    def _arithmetic(self, *values: Tensor) -> Sequence[Tensor] | None:
        """Log likelihood, log prior and all statistics; None where digits are lost."""
        params = dict(zip(self._names, values, strict=True))
        plan = self._plan(params)
        found = self._evidence.by_natural_parameters(plan, params)
        if found is None:
            return None
        total, sums, weights = found
        each = [*(sums[key] for key in plan.tied), *(weights[name] for name in self._opaque)]
        return total, plan.prior.log_prob(params), *each

    def _plan(self, params: Mapping[str, Tensor]) -> Plan:
        """The plan with its nodes in their places, of which it has none that move."""
        if self._placed is None:
            self._placed = placed(self._evidence.plan, params)
        return self._placed
