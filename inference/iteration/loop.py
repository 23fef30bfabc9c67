"""The loop from one start: E-step, M-step, check convergence, until nothing is left to gain."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.iteration.acceleration.em_map import EMMap
from ember.inference.iteration.acceleration.schemes import accelerated
from ember.inference.iteration.convergence import FALL, ROUNDING, Monitor, StopReason
from ember.inference.iteration.judgement import Judge
from ember.inference.iteration.progress import progress_bar
from ember.inference.iteration.restarts.restarts import ImpossibleStart
from ember.inference.iteration.run import Run
from ember.inference.maximisation.degeneracy import (
    Degenerate,
    emptied_states,
    idle_entries,
    near_singular,
    uncertainty,
)
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.optimality.curvature import rounding
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.ownership import may_own_parameters
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.reading.model_errors import unevaluated

__all__ = ["Loop", "expectation"]


Tick = Callable[[float], None]
SADDLES = 10  # that one run leaves at most
NOISES = 10.0  # a fall that rounding may explain, in multiples of what it was seen to do
REPEATS = 100  # of the M-step where nothing is latent
UNCERTAIN = 1e-7  # share of the objective that may be rounding without a word about it


def expectation(plan: Plan, maximum: bool) -> Callable[[Mapping[str, Tensor]], Statistics]:
    """The E-step: soft, or by the latents' most probable joint value."""
    return functools.partial(LogEvidence.of(plan).statistics, maximum=maximum)


@dataclass
class Trajectory:
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
        accelerate: The scheme of acceleration; ``iteration/acceleration/schemes.py`` has them.
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

    def __call__(self, params: dict[str, Tensor], limit: int) -> Run:
        """The fit from given parameters after ``limit`` iterations at most.

        Raises:
            ImpossibleStart: If the data have no finite density there.
        """
        plan = self.plan
        em = EMMap(expectation(plan, self.hard), lambda statistics: MStep.of(plan)(statistics))
        way = Trajectory(self.began)
        way.take(self._first(em, params))
        try:
            with progress_bar(self.progress, limit, self.method) as tick:
                reason, warning = self._go(em, way, limit, tick)
            warning = warning or self._doubts(way.current)
            final = self._softly(way.current)
        except KeyboardInterrupt:
            reason, warning, final = StopReason.INTERRUPTED, "", self._softly(way.current)
        if reason in (StopReason.MAX_ITER, StopReason.UNSETTLED):
            warning = f"{self.method}: {reason.value}"
        return Run(
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

    def _go(self, em: EMMap, way: Trajectory, limit: int, tick: Tick) -> tuple[StopReason, str]:
        """Iterates until there is a reason to stop; returns it, and a warning if it went wrong."""
        plan = self.plan
        if limit and not plan.structure.parameters:
            return StopReason.NO_PARAMETERS, ""
        coordinates = Coordinates(plan.structure.parameters, plan.superposed_parameters())
        judge = Judge(plan, em.e_step, coordinates, self.hard)
        if limit and not plan.is_incomplete:
            settled, trouble = _maximise_fully(em, way)
            if trouble is not None:
                return judge.failed(way.current, *self._trouble(trouble))
            higher = judge.higher(way.current) if settled else None
            if settled and higher is None:
                return judge.verdict(way.current, StopReason.NO_LATENTS)
            if higher is not None:
                way.take(higher)
        return self._iterate(em, way, limit, tick, judge)

    def _iterate(
        self, em: EMMap, way: Trajectory, limit: int, tick: Tick, judge: Judge
    ) -> tuple[StopReason, str]:
        """E-step, M-step, check convergence."""
        begin = functools.partial(
            accelerated, None if self.hard else self.accelerate, em, judge.coordinates
        )
        iterate, monitor, saddles = begin(), Monitor(self.tol), 0
        for _ in range(limit):
            try:
                step = iterate(way.current)
            except (RuntimeError, ValueError, ArithmeticError) as error:
                return judge.failed(way.current, *self._trouble(error))
            failure = monitor.failure(way.current.objective, step.statistics.objective)
            if failure is not None and not self._is_rounding(way.current, step.statistics):
                stop, why = self._explained(failure, way.current, step.statistics, em)
                return judge.failed(way.current, stop, why)
            way.take(step.statistics)
            tick(way.current.objective)
            reason = monitor.check(way.current.objective, step.movement)
            if reason is None:
                continue
            higher = judge.higher(way.current) if saddles < SADDLES else None
            if higher is None:
                return judge.verdict(way.current, reason)
            way.take(higher)
            iterate, monitor, saddles = begin(), Monitor(self.tol), saddles + 1
        if not self.tol:
            return StopReason.STEPS, ""
        return judge.failed(way.current, StopReason.MAX_ITER, "")

    def _trouble(self, error: Exception) -> tuple[StopReason, str]:
        """The reason to stop where a step raised an error, and a warning that says so."""
        if isinstance(error, Degenerate):
            return StopReason.DEGENERATE, str(error)
        return StopReason.FAILED, f"{self.method}: {StopReason.FAILED.value} ({error})"

    def _is_rounding(self, before: Statistics, after: Statistics) -> bool:
        """Whether the objective fell by no more than it is uncertain."""
        fall = before.objective - after.objective
        return fall <= uncertainty(self.plan.structure.parameters, after.params)

    def _softly(self, current: Statistics) -> Statistics:
        """The E-step that a fit reports; of a hard one the history has the other objective."""
        return LogEvidence.of(self.plan).statistics(current.params) if self.hard else current

    def _explained(
        self, failure: StopReason, before: Statistics, after: Statistics, em: EMMap
    ) -> tuple[StopReason, str]:
        """Why an iteration went wrong, and a warning that says so."""
        if failure is not StopReason.DECREASED:
            return failure, f"{self.method}: {failure.value}"
        found = near_singular(self.plan.structure.parameters, after.params)
        if found is not None:
            return StopReason.ROUNDED, (
                f"{self.method}: {StopReason.ROUNDED.value}. A matrix of site '{found[0]}' is all "
                f"but singular (condition number {found[1]:.0e}): drop columns that others all but "
                "determine, or give it a prior that keeps it away from that."
            )
        noise = max(rounding(em.e_step, before), rounding(em.e_step, after))
        if before.objective - after.objective <= NOISES * noise:
            return StopReason.ROUNDED, (
                f"{self.method}: {StopReason.ROUNDED.value}. At these parameters its rounding is "
                f"about {noise:.0e}: centre and scale the data."
            )
        return failure, f"{self.method}: {failure.value}"

    def _doubts(self, current: Statistics) -> str:
        """A warning about estimates that the data do not determine, or nothing."""
        plan, warning = self.plan, ""
        if plan.objective == "mle":  # a prior determines what data leave open
            latents = [n for n in plan.structure.latent if n in plan.compiled]
            keys = {n: plan.compiled[n][0] for n in latents if may_own_parameters(plan, n)}
            warning = emptied_states(current, keys, plan.structure.steps)
            warning = warning or self._uncertain(current)
        return warning or idle_entries(current, plan.priors)

    def _uncertain(self, current: Statistics) -> str:
        """A warning about a matrix so near to singular that the objective loses its digits."""
        parameters = self.plan.structure.parameters
        error = uncertainty(parameters, current.params)
        if error <= UNCERTAIN * (1.0 + abs(current.objective)):
            return ""
        found = near_singular(parameters, current.params)
        assert found is not None
        return (
            f"{self.method}: a matrix of site '{found[0]}' is all but singular (condition number "
            f"{found[1]:.0e}), so that the objective is known to {error:.0e} only: drop columns "
            "that others all but determine, or give it a prior that keeps it away from that."
        )


def _maximise_fully(em: EMMap, way: Trajectory) -> tuple[bool, Exception | None]:
    """Without latents the statistics are fixed: repeat the M-step until its parts agree.

    Returns:
        Whether they do, and the error of the step that went wrong if one did.
    """
    statistics = way.current
    reached, stalled, settled = -math.inf, 0, False
    trouble: Exception | None = None
    for _ in range(REPEATS):
        try:
            params = em.m_step(statistics)
            with torch.no_grad():
                value = float(expected_log_joint(statistics, params))
        except (RuntimeError, ValueError, ArithmeticError) as error:
            trouble = error
            break
        if not math.isfinite(value) or value < reached - FALL * (1.0 + abs(reached)):
            break
        stalled = stalled + 1 if value - reached <= ROUNDING * (1.0 + abs(value)) else 0
        reached = max(reached, value)
        settled = Coordinates.distance(statistics.params, params) <= 1e-13 or stalled >= 3
        statistics = dataclasses.replace(statistics, params=params)
        if settled:
            break
    if statistics is not way.current:
        found = em.e_step(statistics.params)
        if math.isfinite(found.objective) and found.objective >= way.current.objective:
            way.take(found)
    return settled, trouble
