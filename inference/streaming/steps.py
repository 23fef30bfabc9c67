"""EM's two steps over the pieces: each is sure to rise, though an M-step may not see all of it.

With sufficient statistics the M-step is that of the data in memory. Sites without any are seen to
second order (``factors/second_order.py``), near where the E-step was taken: a step beyond may fall.
So the objective is asked where it ends, and it is shortened until that has risen. The pass that
asks is the next E-step.
"""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from ember.inference.iteration.convergence import failure
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.updates import How
from ember.inference.optimality.nearby import evaluated
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["Steps", "m_step"]

SHORTENINGS = 12  # to a quarter each: beyond, what is left is rounding


def m_step(template: Plan, statistics: Statistics) -> dict[str, Tensor]:
    """The M-step on statistics of pieces; what is known to second order bends downwards."""
    if statistics.second_order is not None:
        concave = statistics.second_order.concave()
        statistics = dataclasses.replace(statistics, second_order=concave)
    return MStep.of(template)(statistics)


class Steps:
    """E-step and M-step over the pieces.

    Args:
        template: The plan for some rows.
        e_step: One pass over all pieces.
    """

    def __init__(self, template: Plan, e_step: Callable[[Params], Statistics]) -> None:
        self._template, self._pass = template, e_step
        self._ahead: Statistics | None = None
        updates, parameters = MStep.of(template).updates, template.structure.parameters
        searched = {u.name for u in updates if u.how is How.NUMERICAL}
        self._searched = Coordinates({n: p for n, p in parameters.items() if n in searched})

    def e_step(self, params: Params) -> Statistics:
        """The statistics at ``params``: one pass, unless the M-step has just made it."""
        ahead, self._ahead = self._ahead, None
        return ahead if ahead is not None and ahead.params is params else self._pass(params)

    def looked_ahead(self, params: dict[str, Tensor]) -> Statistics:
        """The statistics at ``params``, where the next E-step is."""
        self._ahead = dataclasses.replace(self._pass(params), params=params)
        return self._ahead

    def m_step(self, statistics: Statistics) -> dict[str, Tensor]:
        """Parameters with an objective that is no lower."""
        found = m_step(self._template, statistics)
        if statistics.second_order is None:
            return found
        start = self._searched.flatten(statistics.params)
        way = self._searched.flatten(found) - start
        for i in range(SHORTENINGS):
            if i:
                found = {**found, **self._searched.unflatten(start + 0.25**i * way)}
            after = evaluated(self._pass, found)
            if after is not None and failure(statistics.objective, after.objective) is None:
                self._ahead = dataclasses.replace(after, params=found)
                return found
        return dict(statistics.params)
