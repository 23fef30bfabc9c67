"""Functions of statistics, written down once and played back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

from torch import Tensor

from ember.inference.factors.opaque import OpaqueFactors, OpaquePosterior
from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.numerics.replay.replayed import Replayed
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Plan
from ember.inference.plan.priors import Prior
from ember.inference.plan.statistics import Statistics

__all__ = ["OfStatistics", "Reads", "given"]


class Reads(NamedTuple):
    """What a function of statistics reads but for the numbers.

    Statistics of sites had by their residuals, and those at nodes that move, are measured from
    elsewhere each time: they read something else.
    """

    names: tuple[str, ...]
    keys: tuple[TieKey, ...]
    tied: tuple[TiedFactors, ...]
    opaque: tuple[OpaqueFactors, ...]
    weights: tuple[str, ...]
    prior: Prior

    @classmethod
    def of_plan(cls, plan: Plan) -> Self | None:
        """Those of a plan's own statistics; None if they are not always the same."""
        moves = any(plan.dependencies(name) for name in plan.structure.nodes)
        if moves or plan.units or plan.opaque.asks_the_model or plan.prior.opaque:
            return None
        if plan.structure.nodes:
            plan = placed(plan, plan.structure.start)
        weights = (*plan.opaque.members, *plan.opaque.factors)
        return cls(
            tuple(plan.structure.parameters),
            tuple(plan.tied),
            tuple(plan.tied.values()),
            (plan.opaque,) if weights else (),
            weights,
            plan.prior,
        )

    def are_of(self, statistics: Statistics) -> bool:
        """Whether some statistics are among them."""
        each, opaque = statistics.sums, statistics.opaque
        return (
            statistics.prior is self.prior
            and not statistics.expansions
            and tuple(statistics.params) == self.names
            and tuple(each) == self.keys
            and all(map(operator.is_, self.tied, [tied for tied, _ in each.values()]))
            and len(opaque) == len(self.opaque)
            and all(map(operator.is_, self.opaque, [piece.factors for piece in opaque]))
            and all(tuple(piece.weights) == self.weights for piece in opaque)
        )

    def statistics(
        self, tensors: Sequence[Tensor], log_likelihood: float = 0.0, log_prior: float = 0.0
    ) -> Statistics:
        """Statistics with some numbers: parameters, sums and weights."""
        rest = iter(tensors)
        params = {name: next(rest) for name in self.names}
        sums = {key: (tied, next(rest)) for key, tied in zip(self.keys, self.tied, strict=True)}
        weights = {name: next(rest) for name in self.weights}
        opaque = tuple(OpaquePosterior(factors, weights) for factors in self.opaque)
        return Statistics(log_likelihood, log_prior, params, sums, opaque, self.prior)


class OfStatistics:
    """A function of statistics, played back for those of a plan.

    Args:
        function: Of statistics, and of further tensors.
        reads: What the plan's statistics read; None if nothing can be played back.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], reads: Reads | None) -> None:
        self._function, self._reads = function, reads
        # Not bound to this object, which would keep itself.
        self._replayed = None if reads is None else Replayed(_of_tensors(function, reads))

    def __call__(self, statistics: Statistics, *others: Tensor) -> Sequence[Tensor]:
        """What the function gives."""
        if self._replayed is None or self._reads is None or not self._reads.are_of(statistics):
            return self._function(statistics, *others)
        sums = [own for _, own in statistics.sums.values()]
        weights = [each for piece in statistics.opaque for each in piece.weights.values()]
        return given(self._replayed(*statistics.params.values(), *sums, *weights, *others))


def _of_tensors(
    function: Callable[..., Sequence[Tensor]], reads: Reads
) -> Callable[..., Sequence[Tensor]]:
    """The function of all numbers."""
    count = len(reads.names) + len(reads.keys) + len(reads.weights)
    return lambda *tensors: function(reads.statistics(tensors[:count]), *tensors[count:])


def given(found: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """What a function gave that always gives something."""
    assert found is not None
    return found
