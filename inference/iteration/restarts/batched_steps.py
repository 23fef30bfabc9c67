"""EM's two steps at several parameter values together: the dim of starts is one more plate.

Every parameter has a leading dim, and so have the natural parameters, the factors and the log
evidence; what a step costs to begin is then shared by all starts. Plain mixtures take the one-sweep
kernel, all other models the contraction, in which starts are the outermost plate. The M-step is one
as well where every update is a closed form, row by row; elsewhere (coefficients of regressions,
numerical updates) it is taken start by start, from the statistics of each.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.expectation.elimination import Contraction
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.opaque import OpaquePosterior
from ember.inference.iteration.restarts.batched_plan import (
    batched_m_step,
    batched_plan,
    can_batch,
    log_priors,
)
from ember.inference.maximisation.degeneracy import Degenerate
from ember.inference.maximisation.m_step import MStep
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import natural_parameters, tensors, values_of
from ember.inference.plan.statistics import Statistics

__all__ = ["BatchedSteps", "State", "can_batch_steps", "chosen", "joined", "mixed"]


Params = dict[str, Tensor]
STARTS = "0"  # the dim of starts: before all letters, so that it comes first among the plates
MOST_NUMBERS = 20_000_000  # in the factors of the starts that are contracted at once


def joined(each: Sequence[Mapping[Any, Tensor]]) -> dict[Any, Tensor]:
    """The values of every start, stacked."""
    return {key: torch.stack([values[key] for values in each]) for key in each[0]}


def chosen(stacked: Mapping[Any, Tensor], which: Any) -> dict[Any, Tensor]:
    """The values of one start (a number), or of some of them (a list or a slice)."""
    return {key: value[which] for key, value in stacked.items()}


def mixed(
    mine: Tensor, one: Mapping[Any, Tensor], other: Mapping[Any, Tensor]
) -> dict[Any, Tensor]:
    """One's values for the starts marked, the other's for the rest."""
    return {
        key: torch.where(mine.reshape(-1, *(1,) * (value.dim() - 1)), value, other[key])
        for key, value in one.items()
    }


@dataclass(frozen=True)
class State:
    """Stacked parameters ``(R, ...)``, and what the E-step says at each of them.

    Attributes:
        params: The parameters.
        expected: Statistics of each group ``(R, C, P)``, and posteriors ``(R, ...)`` of the factors
            that have none, by name.
        objectives: ``(R,)``.
        unsure: Starts whose data lie too far from the one reference that all share, ``(R,)``; see
            ``factors/residuals/normal.py``. They must go on alone.
    """

    params: Params
    expected: dict[Any, Tensor]
    objectives: Tensor
    unsure: Tensor

    def kept(self, places: list[int]) -> "State":
        """The state of some of the starts."""
        return State(
            chosen(self.params, places),
            chosen(self.expected, places),
            self.objectives[places],
            self.unsure[places],
        )

    def where(self, mine: Tensor, other: "State") -> "State":
        """This state for the starts marked, the other one for the rest."""
        return State(
            mixed(mine, self.params, other.params),
            mixed(mine, self.expected, other.expected),
            torch.where(mine, self.objectives, other.objectives),
            torch.where(mine, self.unsure, other.unsure),
        )


def can_batch_steps(plan: Plan) -> bool:
    """Whether several starts can go together: something is latent, and no rate is superposed."""
    latent = bool(plan.structure.latent) or plan.has_gaps
    return latent and bool(plan.structure.parameters) and not plan.superposed_parameters()


class BatchedSteps:
    """The steps of one plan for any number of parameter values at once.

    Args:
        plan: A plan that ``can_batch_steps``.
        maximum: Whether the E-step takes the latents' best joint value; see
            ``expectation/log_evidence.py``.
    """

    def __init__(self, plan: Plan, maximum: bool = False) -> None:
        self._plan, self._maximum = plan, maximum
        self._kernel = LogEvidence.of(plan).kernel
        self.structure = plan.structure
        self.is_closed = can_batch(plan)
        self._batched = dict[int, tuple[Plan, MStep]]()
        self._contractions = dict[int, Contraction]()
        numbers = sum(math.prod(plan.sizes[d] for d in f.dims) for f in plan.factors)
        self._at_once = max(1, MOST_NUMBERS // max(1, numbers))

    def _many(self, count: int) -> tuple[Plan, MStep]:
        """The plan for a number of starts, and its M-step."""
        if count not in self._batched:
            many = batched_plan(self._plan, count)
            self._batched[count] = many, batched_m_step(self._plan, many)
        return self._batched[count]

    def e_step(self, params: Params) -> State:
        """The statistics and the objective of every start.

        Raises:
            RuntimeError: If a matrix of one of the starts has no Cholesky factor.
        """
        count = len(next(iter(params.values())))
        with torch.no_grad():
            natural, priors = self._natural(params, count)
            if self._kernel is not None and not self._maximum:
                evidence, expected = self._kernel.together(natural)
                return self._state(params, expected, evidence + priors)
            each = [self._plan.opaque.factor_log_probs(chosen(params, i)) for i in range(count)]
            natural.update(joined(each))
        evidence, pieces = torch.zeros(count), []
        for start in range(0, count, self._at_once):
            own = slice(start, start + self._at_once)
            evidence[own], found = self._contract(chosen(natural, own))
            pieces.append(found)
        expected = {key: torch.cat([piece[key] for piece in pieces]) for key in natural}
        return self._state(params, expected, evidence + priors)

    def _state(self, params: Params, expected: dict[Any, Tensor], objectives: Tensor) -> State:
        plan, count = self._plan, len(objectives)
        if self.is_closed:
            groups = self._many(count)[0].tied
            unsure = plan.residuals.unsure(groups, params, expected, count)
            return State(params, expected, objectives, unsure)
        each = []
        for i in range(count):
            own, sums = chosen(params, i), {key: expected[key][i : i + 1] for key in plan.tied}
            each.append(plan.residuals.unsure(plan.tied, own, sums, 1))
        return State(params, expected, objectives, torch.cat(each))

    def _natural(self, params: Params, count: int) -> tuple[dict[Any, Tensor], Tensor]:
        """Natural parameters of every group ``(R, C, P)``, and the log priors ``(R,)``."""
        if not self.is_closed:
            each = [chosen(params, i) for i in range(count)]
            natural = joined(
                [natural_parameters(self._plan, values_of(self._plan, own)) for own in each]
            )
            return natural, torch.stack([self._plan.prior.log_prob(own) for own in each])
        many, _ = self._many(count)
        natural = {}
        for key, eta in natural_parameters(many, values_of(many, params)).items():
            natural[key] = eta.reshape(count, -1, eta.shape[-1])
        return natural, log_priors(many, params, count)

    def _contract(self, values: Mapping[Any, Tensor]) -> tuple[Tensor, dict[Any, Tensor]]:
        """The log evidence of each start, and its gradient."""
        leaves = {key: value.detach().requires_grad_() for key, value in values.items()}
        count = len(next(iter(leaves.values())))
        if count not in self._contractions:
            self._contractions[count] = self._compiled(count)
        contraction = self._contractions[count]
        with torch.enable_grad():
            parts = contraction(tensors(self._plan, leaves, leaves), self._maximum)
            evidence = contraction.total(parts, along=STARTS)
            found = torch.autograd.grad(evidence.sum(), list(leaves.values()), allow_unused=True)
        gradients = {
            key: torch.zeros_like(leaf) if g is None else g
            for (key, leaf), g in zip(leaves.items(), found, strict=True)
        }
        return evidence.detach(), gradients

    def _compiled(self, count: int) -> Contraction:
        """The plan's contraction, with starts as the outermost plate of every factor."""
        plan = self._plan
        factors = [
            dataclasses.replace(f, dims=(STARTS, *f.dims), plates=f.plates | {STARTS})
            for f in plan.factors
        ]
        sizes = {**plan.sizes, STARTS: count}
        return Contraction(factors, plan.latents(), sizes, list(plan.chains.values()))

    def m_step(self, state: State) -> tuple[Params, list[int]]:
        """New parameters of the starts that have some, and the places of those that have none."""
        if self.is_closed:
            return self._m_step_together(state)
        found, lost = [], []
        for i in range(len(state.objectives)):
            try:
                found.append(self._m_step_alone(state, i))
            except (Degenerate, RuntimeError, ValueError):
                lost.append(i)
        return joined(found) if found else {}, lost

    def _m_step_together(self, state: State) -> tuple[Params, list[int]]:
        left = list(range(len(state.objectives)))
        while left:
            own = state.kept(left)
            many, m_step = self._many(len(left))
            sums = {key: (tied, own.expected[key].flatten(0, 1)) for key, tied in many.tied.items()}
            try:
                moved = m_step(Statistics(0.0, 0.0, own.params, sums, (), many.prior))
            except Degenerate as error:
                del left[error.index[0]]
            else:
                return moved, [i for i in range(len(state.objectives)) if i not in left]
        return {}, list(range(len(state.objectives)))

    def _m_step_alone(self, state: State, place: int) -> Params:
        plan, expected = self._plan, chosen(state.expected, place)
        sums = {key: (tied, expected.pop(key)) for key, tied in plan.tied.items()}
        params = chosen(state.params, place)
        opaque = (OpaquePosterior(plan.opaque, expected),) if expected else ()
        return MStep.of(plan)(Statistics(0.0, 0.0, params, sums, opaque, plan.prior))
