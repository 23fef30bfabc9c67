"""EM's two steps at several parameter values at once: the dim of starts is one more plate.

Every parameter has a leading dim, and so have the natural parameters, the factors and the log
evidence; what a step costs to begin is then shared by all starts. Plain mixtures take the one-sweep
kernel, all other models the contraction, in which starts are the outermost plate. The M-step is one
as well where every update is a closed form, row by row; elsewhere (coefficients of regressions,
numerical updates) it is taken start by start, from the statistics of each.
"""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.opaque import OpaquePosterior
from ember.inference.factors.tied import TieKey
from ember.inference.iteration.restarts.batched_statistics import (
    BatchedStatistics,
    chosen,
    joined,
)
from ember.inference.maximisation.degeneracy import Degenerate
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.updates import How, updates
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import natural_parameters, values_of
from ember.inference.plan.statistics import Statistics

__all__ = ["BatchedSteps", "can_batch_steps"]


Params = dict[str, Tensor]
MOST_NUMBERS = 20_000_000  # in the factors of the starts that are contracted at once


def can_batch_steps(plan: Plan) -> bool:
    """Whether several starts can be a batch: something is latent, and no rate is superposed.

    The nodes of a continuous latent are in other places for each start.
    """
    latent = bool(plan.structure.latent) or plan.has_gaps or bool(plan.conjugate)
    latent = latent and not plan.on_nodes
    return latent and bool(plan.structure.parameters) and not plan.superposed_parameters()


class BatchedSteps:
    """The steps of one plan for any number of parameter values at once.

    Args:
        plan: A plan that ``can_batch_steps``.
        classification: Whether the E-step takes the latents' most probable joint value.
    """

    def __init__(self, plan: Plan, classification: bool = False) -> None:
        self._plan, self._classification = plan, classification
        self._kernel = None if classification else LogEvidence.of(plan).kernel
        self.coordinates = Coordinates(plan.structure.parameters)
        self.is_closed = _is_closed(plan)
        self._batched = dict[int, tuple[Plan, MStep]]()
        self._evidence = dict[int, LogEvidence]()
        numbers = sum(math.prod(plan.sizes[d] for d in f.dims) for f in plan.factors)
        self._at_once = max(1, MOST_NUMBERS // max(1, numbers))

    # -- E-step ---------------------------------------------------------------------------------

    def e_step(self, params: Params) -> BatchedStatistics:
        """The statistics and the objective of every start.

        Raises:
            RuntimeError: If a matrix of one of the starts has no Cholesky factor.
        """
        count = len(next(iter(params.values())))
        with torch.no_grad():
            natural, log_priors = self._natural(params, count)
            if self._kernel is not None:
                evidence, sums = self._kernel.batched(natural)
                return self._statistics(params, sums, {}, evidence + log_priors)
            each = [self._plan.opaque.factor_log_probs(chosen(params, i)) for i in range(count)]
            other = joined(each)
        pieces = []
        for start in range(0, count, self._at_once):
            piece = slice(start, start + self._at_once)
            pieces.append(self._gradients(chosen(natural, piece), chosen(other, piece)))
        evidence = torch.cat([totals for totals, _, _ in pieces])
        sums = {key: torch.cat([by_tie[key] for _, by_tie, _ in pieces]) for key in natural}
        weights = {n: torch.cat([by_factor[n] for _, _, by_factor in pieces]) for n in other}
        return self._statistics(params, sums, weights, evidence + log_priors)

    def _natural(self, params: Params, count: int) -> tuple[dict[TieKey, Tensor], Tensor]:
        """Natural parameters of all tied factors ``(R, C, P)``, and the log priors ``(R,)``."""
        if not self.is_closed:
            plan, each = self._plan, [chosen(params, i) for i in range(count)]
            natural = joined([natural_parameters(plan, values_of(plan, one)) for one in each])
            return natural, torch.stack([plan.prior.log_prob(one) for one in each])
        plan, _ = self._batched_plan(count)
        natural = {
            key: eta.reshape(count, -1, eta.shape[-1])
            for key, eta in natural_parameters(plan, values_of(plan, params)).items()
        }
        return natural, plan.prior.log_prob(params)

    def _gradients(
        self, natural: Mapping[TieKey, Tensor], other: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[TieKey, Tensor], dict[str, Tensor]]:
        """The log evidence of each start, and its gradients."""
        count = len(next(iter([*natural.values(), *other.values()])))
        if count not in self._evidence:
            self._evidence[count] = LogEvidence(self._plan, count)
        return self._evidence[count].gradients(natural, other, maximum=self._classification)

    def _statistics(
        self,
        params: Params,
        sums: dict[TieKey, Tensor],
        weights: dict[str, Tensor],
        objectives: Tensor,
    ) -> BatchedStatistics:
        plan, count = self._plan, len(objectives)
        if self.is_closed:
            unsure = plan.residuals.unsure(self._batched_plan(count)[0].tied, params, sums, count)
            return BatchedStatistics(params, sums, weights, objectives, unsure)
        each = [
            plan.residuals.unsure(plan.tied, chosen(params, i), chosen(sums, slice(i, i + 1)), 1)
            for i in range(count)
        ]
        return BatchedStatistics(params, sums, weights, objectives, torch.cat(each))

    # -- M-step ---------------------------------------------------------------------------------

    def m_step(self, state: BatchedStatistics) -> tuple[Params, list[int]]:
        """New parameters of the starts that have some, and the places of those that have none."""
        if self.is_closed:
            return self._m_step_at_once(state)
        moved, lost = [], []
        for place in range(len(state)):
            try:
                moved.append(self._m_step_of_one(state, place))
            except (Degenerate, RuntimeError, ValueError):
                lost.append(place)
        return joined(moved) if moved else {}, lost

    def _m_step_at_once(self, state: BatchedStatistics) -> tuple[Params, list[int]]:
        left = list(range(len(state)))
        while left:
            rest = state.kept(left)
            plan, m_step = self._batched_plan(len(left))
            sums = {key: (tied, rest.sums[key].flatten(0, 1)) for key, tied in plan.tied.items()}
            try:
                moved = m_step(Statistics(0.0, 0.0, rest.params, sums, (), plan.prior))
            except Degenerate as error:
                del left[error.index[0]]
            else:
                return moved, [i for i in range(len(state)) if i not in left]
        return {}, list(range(len(state)))

    def _m_step_of_one(self, state: BatchedStatistics, place: int) -> Params:
        plan, params = self._plan, chosen(state.params, place)
        sums = {key: (tied, state.sums[key][place]) for key, tied in plan.tied.items()}
        weights = chosen(state.weights, place)
        opaque = (OpaquePosterior(plan.opaque, weights),) if weights else ()
        return MStep.of(plan)(Statistics(0.0, 0.0, params, sums, opaque, plan.prior))

    def _batched_plan(self, count: int) -> tuple[Plan, MStep]:
        """The plan for a number of starts, and its M-step."""
        if count not in self._batched:
            plan = self._plan.batched(count)
            self._batched[count] = plan, _m_step(self._plan, plan)
        return self._batched[count]


def _is_closed(plan: Plan) -> bool:
    """Whether the M-step of several parameter values can be one: every update is closed form."""
    if any(update.how not in (How.CLOSED, How.FIXED) for update in updates(plan)):
        return False
    templates = [prior.site.density for prior in plan.priors.values()]
    return all(template is not None and template.is_plain for template in templates)


def _m_step(plan: Plan, batched: Plan) -> MStep:
    """The M-step of a batched plan, with the updates of the plan that it was made from.

    The rows of a source begin after the copies of all rows before it.
    """
    chosen = []
    for update in updates(plan):
        moved = (
            dataclasses.replace(usage, start=usage.start * batched.starts)
            for usage in update.usages
        )
        chosen.append(dataclasses.replace(update, usages=tuple(moved)))
    return MStep(batched, chosen)
