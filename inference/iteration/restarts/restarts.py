"""Several starts: a short run of all of them, the best carried on to their end.

Most starts show early what they will come to, and EM steps on a stack of parameters cost little
more than on one. So all starts take a short run together, until they have all but settled; the best
third, and no fewer than three, are then run to the end by the accelerated loop. A start that
degenerates in its short run is set aside; should all those carried on degenerate, the next best
take their place.

Reference: Biernacki, Celeux & Govaert (2003), *Choosing starting values for the EM algorithm for
getting the highest likelihood in multivariate Gaussian mixture models*, Computational Statistics &
Data Analysis 41, 561-575.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.restarts.batched_run import run_together
from ember.inference.iteration.restarts.batched_steps import BatchedSteps, can_batch_steps
from ember.inference.iteration.restarts.record import Starts
from ember.inference.iteration.run import Run
from ember.inference.plan.plan import Plan

__all__ = ["ImpossibleStart", "Start", "best_of"]


SHORT = 100  # iterations of the short run at most
FEW = 30  # the same where the M-step is taken start by start
SETTLED = 1e-7  # relative gain below which a start has settled
SHARE, FEWEST = 3, 3  # one start in so many is carried on, and at least so many
GIVEN = "given"  # a start of the user's own is always carried on
Runner = Callable[[dict[str, Tensor], int], Run]


class ImpossibleStart(ValueError):
    """The data have no finite density at the starting parameters, or the model fails there."""


@dataclass(frozen=True)
class Start:
    """Parameters to start from, and how they were made."""

    kind: str
    params: dict[str, Tensor]


@dataclass
class _Runner:
    """A start on its way: what it has reached, and its fit once it has been run to its end."""

    kind: str
    params: dict[str, Tensor]
    history: list[float]
    times: list[float]
    passes: int = 0
    degenerate: bool = False
    fit: Run | None = None
    carried: bool = False

    @property
    def rank(self) -> tuple[bool, float]:
        """Sound results first, then by the objective."""
        return not self.degenerate, self.history[-1]

    def carry_on(self, run: Runner, limit: int) -> None:
        """Runs the start to its end, unless its short run was the end."""
        self.carried = True
        short = len(self.history) - 1
        ended = self.fit is not None and self.fit.stop not in (
            StopReason.MAX_ITER,
            StopReason.STEPS,
        )
        if ended or (self.fit is not None and short >= limit):
            return
        try:
            fit = run(self.params, max(limit - short, 0))
        except KeyboardInterrupt:  # before its first step: what the short run reached counts
            fit = dataclasses.replace(run(self.params, 0), stop=StopReason.INTERRUPTED)
        # The first E-step of the long run repeats the last one of the short run.
        history = torch.tensor([*self.history[:-1], *fit.history.tolist()], dtype=torch.float64)
        self.fit = dataclasses.replace(
            fit,
            history=history.cummax(0).values,
            times=torch.tensor([*self.times[:-1], *fit.times.tolist()], dtype=torch.float64),
            evaluations=self.passes + fit.evaluations,
        )
        self.params, self.history = self.fit.params, self.fit.history.tolist()
        self.degenerate = self.fit.is_degenerate

    def go_alone(self, run: Runner, steps: int) -> bool:
        """A few steps by itself of a start that left the batch; whether they were interrupted."""
        try:
            self.carry_on(run, len(self.history) - 1 + steps)
        except ImpossibleStart:
            self.history = []
            return False
        assert self.fit is not None
        self.carried, self.passes = self.fit.converged, self.fit.evaluations
        self.times = self.fit.times.tolist()
        return self.fit.stop is StopReason.INTERRUPTED


def best_of(
    plan: Plan,
    starts: Sequence[Start],
    run: Runner,
    limit: int,
    tolerance: float,
    began: float = 0.0,
    maximum: bool = False,
    jumps: bool = True,
) -> Run:
    """The best fit over all starts, with the record of what became of each.

    Args:
        plan: The plan of the model.
        starts: Where to start.
        run: The whole loop from given parameters, for a number of iterations at most.
        limit: The largest number of iterations for each start.
        tolerance: Share of the objective by which a start may miss the best and have reached it.
        began: When the fit began, by ``time.perf_counter``.
        maximum: Whether the E-step takes the latents' best joint value.
        jumps: Whether to accelerate the short run.

    Raises:
        ImpossibleStart: If the data have a finite density at no start.
        KeyboardInterrupt: If interrupted before the first start was found to have one.
    """
    runners, interrupted = list[_Runner](), False
    if len(starts) > 1 and can_batch_steps(plan):
        runners, interrupted = _together(
            BatchedSteps(plan, maximum), starts, run, limit, began, jumps
        )
    if not any(runner.history for runner in runners):
        # There is no batch, or it could not begin, perhaps for one start alone.
        steps = limit if len(starts) == 1 else min(FEW, limit)
        runners, interrupted = _in_turn(starts, run, steps)
    possible = sorted((r for r in runners if r.history), key=lambda r: r.rank, reverse=True)
    if not possible:
        run(starts[0].params, 0)  # says why
    count = max(FEWEST, len(starts) // SHARE)
    for place, runner in enumerate(possible):
        sound = any(other.carried and not other.degenerate for other in possible)
        if place < count or not sound or runner.kind == GIVEN:
            runner.carry_on(run, 0 if interrupted else limit)
            assert runner.fit is not None
            interrupted = interrupted or runner.fit.stop is StopReason.INTERRUPTED
            if interrupted:
                break
    return _recorded(runners, tolerance, interrupted)


def _together(
    stack: BatchedSteps, starts: Sequence[Start], run: Runner, limit: int, began: float, jumps: bool
) -> tuple[list[_Runner], bool]:
    """A short run of all starts as one batch; whether it was interrupted."""
    steps = min(SHORT if stack.is_closed else FEW, limit)
    tracks, interrupted = run_together(stack, [s.params for s in starts], steps, SETTLED, jumps)
    runners = [
        _Runner(
            start.kind,
            track.params,
            track.history,
            [moment - began for moment in track.moments[: len(track.history)]],
            track.passes,
            track.degenerate,
        )
        for start, track in zip(starts, tracks, strict=True)
    ]
    for runner, track in zip(runners, tracks, strict=True):
        if track.alone and not interrupted:
            interrupted = runner.go_alone(run, min(FEW, limit))
    return runners, interrupted


def _in_turn(starts: Sequence[Start], run: Runner, steps: int) -> tuple[list[_Runner], bool]:
    """A short run of each start, one after another; whether one was interrupted."""
    runners = []
    for start in starts:
        runner = _Runner(start.kind, start.params, [], [])
        runners.append(runner)
        try:
            fit = run(start.params, steps)
        except ImpossibleStart:
            continue
        except KeyboardInterrupt:
            if not any(each.history for each in runners):
                raise
            return runners, True
        runner.params, runner.fit, runner.degenerate = fit.params, fit, fit.is_degenerate
        runner.history, runner.times = fit.history.tolist(), fit.times.tolist()
        runner.passes, runner.carried = fit.evaluations, fit.converged
        if fit.stop is StopReason.INTERRUPTED:
            return runners, True
    return runners, False


def _recorded(runners: Sequence[_Runner], tolerance: float, interrupted: bool) -> Run:
    """The best fit of those carried on, and the record of all starts."""
    best = max((r for r in runners if r.carried), key=lambda r: r.rank)
    assert best.fit is not None
    last = best.history[-1]
    starts = Starts(
        torch.tensor([r.history[-1] if r.history else -math.inf for r in runners]).double(),
        tuple(r.carried for r in runners),
        tuple(r.kind for r in runners),
        tuple(r.degenerate for r in runners),
        last,
        tolerance * (1.0 + abs(last)),
    )
    stop = StopReason.INTERRUPTED if interrupted else best.fit.stop
    warning = "" if interrupted else best.fit.warning
    return dataclasses.replace(best.fit, starts=starts, stop=stop, warning=warning)
