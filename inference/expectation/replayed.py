"""The E-step of a small model, written down once and played back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.numerics.replay.replayed import Replayed
from ember.inference.plan.of_statistics import Reads
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["ReplayedEStep", "reads_of"]


def reads_of(plan: Plan) -> Reads | None:
    """What the statistics of a plan's E-step read; None if they are not always the same."""
    return LogEvidence.of(plan).plan.once(Reads.of_plan)


class ReplayedEStep:
    """Gives what ``LogEvidence.statistics`` gives, up to rounding.

    Played back is the arithmetic from parameters to statistics. Where the model has to be asked, or
    nodes move with the parameters, there is nothing to play back; where digits are at stake, sites
    are had by their residuals, as ever.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._evidence, self._reads = LogEvidence.of(plan), reads_of(plan)
        self._replayed: Replayed | None = None
        if self._reads is not None:
            own = self._evidence.plan  # a copy, which does not keep this object
            start = own.structure.start
            at = placed(own, start)
            self._replayed = Replayed(partial(_arithmetic, self._evidence, at, self._reads))

    @staticmethod
    def of(plan: Plan) -> ReplayedEStep:
        """That of a plan, which keeps it."""
        return plan.once(ReplayedEStep)

    def __call__(self, params: Mapping[str, Tensor]) -> Statistics:
        """The statistics at some parameters."""
        if self._replayed is None or self._reads is None:
            return self._evidence.statistics(params)
        fixed = {name: params[name].detach() for name in self._reads.names}
        found = self._replayed(*fixed.values())
        if found is None:
            return self._evidence.statistics(params)
        log_likelihood, log_prior, *rest = found
        return self._reads.statistics(
            [*fixed.values(), *rest], float(log_likelihood), float(log_prior)
        )


def _arithmetic(
    evidence: LogEvidence, plan: Plan, reads: Reads, *values: Tensor
) -> Sequence[Tensor] | None:
    """Log likelihood, log prior, statistics and weights; None where digits are lost."""
    params = dict(zip(reads.names, values, strict=True))
    found = evidence.by_natural_parameters(plan, params)
    if found is None:
        return None
    total, sums, weights = found
    each = [*(sums[key] for key in reads.keys), *(weights[name] for name in reads.weights)]
    return total, plan.prior.log_prob(params), *each
