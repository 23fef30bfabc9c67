r"""Stochastic approximation of EM: draws of the latents, and running averages of their statistics.

With the statistics :math:`S(u)` of the complete data and draws :math:`u_k` from a chain whose limit
is the posterior at :math:`\theta_{k-1}`,

.. math:: S_k = S_{k-1} + \gamma_k (S(u_k) - S_{k-1}), \qquad \theta_k = M(S_k),

where :math:`\gamma_k` is 1 at first and then falls as :math:`1/k`. Parameters of sites without
sufficient statistics take a Newton step on the latest draws instead, :math:`\gamma_k` as long, with
a running average of the complete-data information. At first the data are tempered, so that
variances do not shrink before the chains have moved.

References: Delyon, Lavielle & Moulines (1999), Annals of Statistics 27, 94-128; Kuhn & Lavielle
(2005), Computational Statistics & Data Analysis 49, 1020-1038.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ember.inference.iteration.stochastic.chains import Chains, statistics_of_draws
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.maximisation.updates import How, updates
from ember.inference.numerics.monte_carlo import MonteCarlo
from ember.inference.numerics.newton import derivatives
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["approximated"]


TEMPERED = 25  # steps over which the data come to count in full
COOLEST = 0.3  # power of their density at the first
LONGEST = 1.0  # of the first Newton step, in any coordinate


def approximated(
    plan: Plan, params: Params, chains: Sequence[Chains], rule: MonteCarlo
) -> dict[str, Tensor]:
    """The parameters after the burn-in and the averaged steps."""
    closed = [update for update in updates(plan) if update.how is How.CLOSED]
    m_step = MStep(plan, closed)
    numeric = [update.name for update in updates(plan) if update.how not in (How.CLOSED, How.FIXED)]
    newton = _NewtonSteps(plan, numeric)
    average: Statistics | None = None
    now = {name: value.detach() for name, value in params.items()}
    for k in range(rule.burn_in + rule.averaged):
        temper = min(1.0, COOLEST + (1.0 - COOLEST) * k / min(TEMPERED, rule.burn_in))
        gain = 1.0 if k < rule.burn_in else 1.0 / (k - rule.burn_in + 1)
        for each in chains:
            each.sweep(plan, now, temper, adapt=k < rule.burn_in)
        lines = {each.component.factor.name: each.line for each in chains}
        latest = statistics_of_draws(plan, now, lines)
        average = latest if average is None else _averaged(average, latest, gain)
        now = newton(latest, now, gain)
        pooled = dataclasses.replace(average, opaque=(), params=now)
        now = m_step(pooled) if closed else now
    return now


def _averaged(before: Statistics, latest: Statistics, gain: float) -> Statistics:
    """The running average of the sums."""
    sums = {
        key: (tied, (1.0 - gain) * before.sums[key][1] + gain * own)
        for key, (tied, own) in latest.sums.items()
    }
    return dataclasses.replace(latest, sums=sums)


class _NewtonSteps:
    """Steps of parameters without closed forms, by a running average of the information."""

    def __init__(self, plan: Plan, names: Sequence[str]) -> None:
        parameters = plan.structure.parameters
        self._coordinates = Coordinates({name: parameters[name] for name in names})
        self._information: Tensor | None = None

    def __call__(
        self, statistics: Statistics, params: dict[str, Tensor], gain: float
    ) -> dict[str, Tensor]:
        point = self._coordinates.flatten(params)
        if not len(point):
            return params

        def objective(free: Tensor) -> Tensor:
            moved = {**params, **self._coordinates.unflatten(free)}
            return expected_log_joint(statistics, moved) + 0.0 * free.sum()

        gradient, hessian = derivatives(objective, point)
        before = self._information
        self._information = -hessian if before is None else before + gain * (-hessian - before)
        values, vectors = torch.linalg.eigh(self._information)
        size = values.abs()
        size = torch.where(size > 1e-10 * size.max(), size, torch.inf)
        step = vectors @ ((vectors.mT @ gradient) / size)
        # Far from the data Newton's steps overshoot: the first is short.
        step = step / (step.abs().max() / LONGEST).clamp_min(1.0) if before is None else step
        moved = self._coordinates.unflatten(point + gain * step)
        return {**params, **{name: value.detach() for name, value in moved.items()}}
