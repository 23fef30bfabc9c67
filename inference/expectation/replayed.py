"""The E-step of a small model, written down once and played back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.numerics.replay.replayed import Replayed
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
        asked = (*plan.opaque.factors, *plan.opaque.members)
        self._is_arithmetic = not (asked or plan.structure.nodes or plan.units or plan.prior.opaque)
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
        plan, (log_likelihood, log_prior, *each) = self._evidence.plan, found
        sums = {key: (tied, own) for (key, tied), own in zip(plan.tied.items(), each, strict=True)}
        fixed = {name: params[name].detach() for name in params}
        return Statistics(float(log_likelihood), float(log_prior), fixed, sums, (), plan.prior)

    def _arithmetic(self, *values: Tensor) -> Sequence[Tensor] | None:
        """Log likelihood, log prior and all statistics; None where digits are lost."""
        params = dict(zip(self._names, values, strict=True))
        found = self._evidence.by_natural_parameters(params)
        if found is None:
            return None
        total, sums = found
        log_prior = self._evidence.plan.prior.log_prob(params)
        return total, log_prior, *(sums[key] for key in self._evidence.plan.tied)
