r"""Deterministic annealing: EM steps with a flattened posterior, so that the start matters less.

At inverse temperature :math:`\beta` the E-step takes
:math:`p_\beta(z \mid x, \theta) \propto p(x, z \mid \theta)^\beta`, and the M-step is the usual
one. Such a step never lowers the free energy :math:`\frac{1}{\beta} \sum_n \log \sum_z
p(x_n, z \mid \theta)^\beta + \log p(\theta)`, which has fewer maxima than the objective while
:math:`\beta` is small and is the objective at :math:`\beta = 1`. The paper iterates to convergence
at each temperature; repeat a temperature in the schedule for more steps at it.

Reference: Ueda & Nakano (1998), *Deterministic annealing EM algorithm*, Neural Networks 11,
271-282.
"""

from collections.abc import Sequence

from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.maximisation.m_step import MStep
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Plan

__all__ = ["annealed"]


def annealed(plan: Plan, params: dict[str, Tensor], schedule: Sequence[float]) -> dict[str, Tensor]:
    """Parameters after one EM step at each inverse temperature of a rising schedule.

    Raises:
        Degenerate: If a component has collapsed or emptied.
    """
    coordinates = Coordinates(plan.structure.parameters)
    for temper in schedule:
        params = MStep.of(plan)(LogEvidence.of(plan).statistics(params, temper))
        if temper < 1.0:  # components that a high temperature has merged must part again
            params = coordinates.jittered(params)
    return params
