"""The loop from one start: E-step, M-step, check convergence, until nothing is left to gain."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.acceleration import EMMap, accelerated
from ember.inference.convergence import Monitor, StopReason
from ember.inference.coordinates import Coordinates
from ember.inference.degeneracy import (
    Degenerate,
    emptied_states,
    idle_entries,
    near_singular,
    rounding,
)
from ember.inference.families import IMPOSSIBLE
from ember.inference.fit import Fit
from ember.inference.hard import hard_e_step
from ember.inference.maximisation import maximise
from ember.inference.options import progress_bar
from ember.inference.ownership import may_own_parameters
from ember.inference.plan import Plan
from ember.inference.reading.model_errors import unevaluated
from ember.inference.starts.restarts import ImpossibleStart
from ember.inference.statistics import Statistics

__all__ = ["Loop", "expectation"]

Tick = Callable[[float], None]
UNCERTAIN = 1e-7  # share of the objective that may be rounding without a word about it


def expectation(plan: Plan, hard: bool) -> Callable[[Mapping[str, Tensor]], Statistics]:
    """The E-step: soft, or by the latents' most probable joint value."""
    return functools.partial(hard_e_step, plan) if hard else plan.e_step


@dataclass
class _Way:
    """Where the loop is, and the objective and time of each step on the way there."""

    began: float
    current: Statistics = field(init=False)
    history: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def take(self, step: Statistics) -> None:
        """One more step; an interrupt in between leaves a time too many at most."""
        self.current = step
        self.times.append(time.perf_counter() - self.began)
        # A fall within rounding is no fall; the record keeps the best value seen.
        self.history.append(max([step.objective, *self.history[-1:]]))


@dataclass(frozen=True)
class Loop:
    """Runs EM under one plan, from any start; an interrupt ends it with what was reached.

    Attributes:
        plan: The plan of model and data.
        method: How the fit calls itself.
        hard: Whether the E-step takes the latents' most probable joint value.
        accelerate: The scheme of acceleration; ``acceleration.py`` has them.
        tol: Tolerance on what is still to gain, relative to the objective.
        progress: Whether to show a progress bar.
        began: When the fit began, by ``time.perf_counter``.
    """

    plan: Plan
    method: str
    hard: bool
    accelerate: str | None
    tol: float
    progress: bool
    began: float

    def __call__(self, params: dict[str, Tensor], limit: int) -> Fit:
        """The fit from given parameters after ``limit`` iterations at most.

        Raises:
            ImpossibleStart: If the data have no finite density there.
        """
        plan = self.plan
        em = EMMap(expectation(plan, self.hard), lambda statistics: maximise(plan, statistics))
        way = _Way(self.began)
        way.take(self._first(em, params))
        try:
            with progress_bar(self.progress, limit, self.method) as tick:
                reason, warning = self._go(em, way, limit, tick)
            warning = warning or self._doubts(way.current)
            final = self._softly(way.current)
        except KeyboardInterrupt:
            reason, warning, final = StopReason.INTERRUPTED, "", self._softly(way.current)
        if reason is StopReason.MAX_ITER:
            warning = f"{self.method}: {reason.value}"
        return Fit(
            method=self.method,
            objective=plan.objective,
            params=final.params,
            log_likelihood=final.log_likelihood,
            log_posterior=final.objective,
            history=torch.tensor(way.history, dtype=torch.float64),
            times=torch.tensor(way.times[: len(way.history)], dtype=torch.float64),
            evaluations=em.evaluations,
            stop=reason,
            plan=plan,
            warning=warning,
        )

    def _first(self, em: EMMap, params: dict[str, Tensor]) -> Statistics:
        try:
            first = em.e_step(params)
        except (RuntimeError, ArithmeticError) as error:
            message = unevaluated(self.plan.structure.model, error)
            raise ImpossibleStart(message) from error
        if not math.isfinite(first.objective) or first.objective <= 0.1 * IMPOSSIBLE:
            raise ImpossibleStart(
                "the data have no finite density at the starting parameters; start elsewhere with "
                "init={...}, or check the model's supports."
            )
        return first

    def _go(self, em: EMMap, way: _Way, limit: int, tick: Tick) -> tuple[StopReason, str]:
        """Iterates until there is a reason to stop; returns it, and a warning if it went wrong."""
        plan = self.plan
        if limit and not plan.structure.parameters:
            return StopReason.NO_PARAMETERS, ""
        if limit and not plan.is_incomplete:
            try:
                way.take(_maximise_fully(em, way.current))
            except Degenerate as error:
                return StopReason.DEGENERATE, str(error)
            return StopReason.NO_LATENTS, ""
        coordinates = Coordinates(plan.structure.parameters, plan.superposed_parameters())
        iterate = accelerated(None if self.hard else self.accelerate, em, coordinates)
        monitor = Monitor(self.tol)
        for _ in range(limit):
            try:
                step = iterate(way.current)
            except Degenerate as error:
                return StopReason.DEGENERATE, str(error)
            except (RuntimeError, ValueError, ArithmeticError) as error:
                return StopReason.FAILED, f"{self.method}: {StopReason.FAILED.value} ({error})"
            failure = monitor.failure(way.current.objective, step.statistics.objective)
            if failure is not None and not self._is_rounding(way.current, step.statistics):
                return self._explained(failure, step.statistics.params)
            way.take(step.statistics)
            tick(way.current.objective)
            reason = monitor.check(way.current.objective, step.movement)
            if reason is not None:
                return reason, ""
        return StopReason.MAX_ITER, ""

    def _is_rounding(self, before: Statistics, after: Statistics) -> bool:
        """Whether the objective fell by no more than it is uncertain."""
        fall = before.objective - after.objective
        return fall <= rounding(self.plan.structure.parameters, after.params)

    def _softly(self, current: Statistics) -> Statistics:
        """The E-step that a fit reports; of a hard one the history has the other objective."""
        return self.plan.e_step(current.params) if self.hard else current

    def _explained(
        self, failure: StopReason, params: Mapping[str, Tensor]
    ) -> tuple[StopReason, str]:
        """Why an iteration went wrong, and a warning that says so."""
        found = near_singular(self.plan.structure.parameters, params)
        if failure is not StopReason.DECREASED or found is None:
            return failure, f"{self.method}: {failure.value}"
        return StopReason.ROUNDED, (
            f"{self.method}: {StopReason.ROUNDED.value}. A matrix of site '{found[0]}' is all but "
            f"singular (condition number {found[1]:.0e}): drop columns that others all but "
            "determine, or give it a prior that keeps it away from that."
        )

    def _doubts(self, current: Statistics) -> str:
        """A warning about estimates that the data do not determine, or nothing."""
        plan, warning = self.plan, ""
        if plan.objective == "mle":  # a prior determines what data leave open
            latents = [n for n in plan.structure.latent if n in plan.forms]
            keys = {n: plan.forms[n][0] for n in latents if may_own_parameters(plan, n)}
            warning = emptied_states(current, keys, plan.structure.steps)
            warning = warning or self._uncertain(current)
        return warning or idle_entries(current, plan.priors)

    def _uncertain(self, current: Statistics) -> str:
        """A warning about a matrix so near to singular that the objective loses its digits."""
        parameters = self.plan.structure.parameters
        error = rounding(parameters, current.params)
        if error <= UNCERTAIN * (1.0 + abs(current.objective)):
            return ""
        found = near_singular(parameters, current.params)
        assert found is not None
        return (
            f"{self.method}: a matrix of site '{found[0]}' is all but singular (condition number "
            f"{found[1]:.0e}), so that the objective is known to {error:.0e} only: drop columns "
            "that others all but determine, or give it a prior that keeps it away from that."
        )


def _maximise_fully(em: EMMap, statistics: Statistics) -> Statistics:
    """Without latents the statistics are fixed: repeat the M-step until its parts agree."""
    for _ in range(100):
        params = em.m_step(statistics)
        settled = Coordinates.distance(statistics.params, params) <= 1e-13
        statistics = dataclasses.replace(statistics, params=params)
        if settled:
            break
    return em.e_step(statistics.params)
