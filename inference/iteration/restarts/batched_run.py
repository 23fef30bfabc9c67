"""Several starts at once: SQUAREM on all parameters stacked.

Every start takes its own steps (``iteration/acceleration/squarem.py`` has the equations): two EM
steps and the jump that they suggest, which is kept if the objective there is at least that of the
first EM step; otherwise that step is. A start that degenerates keeps its last good parameters and
leaves, one that has settled leaves too, as does one that can only go on alone (see
``factors/residuals/normal.py``), and the others go on as if they had never been there.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.iteration.acceleration.squarem import bound_after, extrapolated
from ember.inference.iteration.convergence import StoppingRule, failure
from ember.inference.iteration.restarts.batched_statistics import (
    BatchedStatistics,
    chosen,
    joined,
    mixed,
)
from ember.inference.iteration.restarts.batched_steps import BatchedSteps
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.numerics.log_space import IMPOSSIBLE

__all__ = ["BatchedRun", "run_batched"]


Params = dict[str, Tensor]


@dataclass
class BatchedRun:
    """What became of several starts.

    Attributes:
        ways: The trajectory of each; that of a start at which the data have no finite density has
            an empty history.
        degenerate: The places of those that degenerated.
        alone: The places of those that must go on alone.
        interrupted: Whether the run was interrupted.
    """

    ways: list[Trajectory]
    degenerate: set[int] = field(default_factory=set)
    alone: set[int] = field(default_factory=set)
    interrupted: bool = False


def run_batched(
    steps: BatchedSteps,
    ways: Sequence[Trajectory],
    limit: int,
    stop: StoppingRule,
    accelerate: bool = True,
    on_step: Callable[[float], object] = lambda objective: None,
) -> BatchedRun:
    """Runs EM from every start, as one batch.

    Args:
        steps: The steps of a plan, for several parameter values at once.
        ways: Where to start; they grow.
        limit: The largest number of iterations.
        stop: Says when a start may leave.
        accelerate: Whether to jump; without, an iteration is one EM step.
        on_step: Called after each iteration with the best objective so far.

    Raises:
        KeyboardInterrupt: If the run was interrupted before it had reached anything.
    """
    run = BatchedRun(list(ways))
    batch = _Batch(steps, run)
    try:
        batch.begin()
        for _ in range(limit):
            batch.drop([i for i, way in enumerate(batch.ways) if stop(way) is not None])
            if not batch.live:
                break
            batch.step(accelerate)
            on_step(max(way.history[-1] for way in run.ways if way.history))
    except KeyboardInterrupt:
        if not any(way.history for way in run.ways):
            raise
        run.interrupted = True
    except (RuntimeError, ValueError, ArithmeticError):
        pass  # the ways hold what was reached; the loop for one start will name the trouble
    return run


class _Batch:
    """The starts that still live, and where they are.

    A *place* is that of a start among those that live; ``live`` holds its number among all.
    """

    def __init__(self, steps: BatchedSteps, run: BatchedRun) -> None:
        self._steps, self._run = steps, run
        self.live = list(range(len(run.ways)))
        self._largest = torch.ones(len(self.live))
        self._current: BatchedStatistics

    @property
    def ways(self) -> list[Trajectory]:
        """The trajectories of the starts that live."""
        return [self._run.ways[number] for number in self.live]

    def begin(self) -> None:
        """The first E-step; starts without a finite density leave."""
        self._current = self._e_step(joined([way.params for way in self.ways]))
        impossible = ~(self._current.objectives > 0.1 * IMPOSSIBLE)
        impossible = impossible | self._current.objectives.isinf()
        self._drop_degenerate(impossible.nonzero()[:, 0].tolist())
        self._record(self._current)
        self._drop_unsure(self._current)

    def step(self, accelerate: bool) -> None:
        """One iteration of every live start; those without a maximiser or that fall leave."""
        once, lost = self._steps.m_step(self._current)
        self._drop_degenerate(lost)
        if not self.live:
            return
        first = self._e_step(once)
        pairs = zip(self._current.objectives.tolist(), first.objectives.tolist(), strict=True)
        fallen = [i for i, (old, new) in enumerate(pairs) if failure(old, new)]
        first = first.kept(self._drop_degenerate(fallen))
        first = first.kept(self._drop_unsure(first))
        if accelerate and self.live:
            twice, lost = self._steps.m_step(first)
            first = first.kept(self._drop_degenerate(lost))
            if self.live:
                first = self._jumped(self._current.params, first, twice)
        self._record(first)

    def _jumped(self, start: Params, first: BatchedStatistics, second: Params) -> BatchedStatistics:
        """Where the jump of each start leads, or its EM step where that is higher."""
        coordinates = self._steps.coordinates
        steps = (start, first.params, second)
        length, target = extrapolated(coordinates, steps, self._largest)
        far, goal = length > 1.0, second
        if bool(far.any()):
            jumped = coordinates.unflatten(torch.where(far.unsqueeze(1), target, 0.0))
            finite = [each.isfinite().reshape(len(far), -1).all(1) for each in jumped.values()]
            far = far & torch.stack(finite).all(0)
            goal = mixed(far, jumped, second)
        try:
            landed = self._e_step(goal)
        except (RuntimeError, ValueError):  # a matrix of one jump without a Cholesky factor
            landed, far = self._e_step(second), torch.zeros_like(far)
        better = (landed.objectives >= first.objectives) & ~landed.unsure  # also false for NaN
        self._largest = bound_after(self._largest, length, better, far & ~better)
        return landed.where(better, first)

    def drop(self, places: Collection[int]) -> list[int]:
        """Takes starts out of the batch; says who stays. Their ways keep what they reached."""
        kept = [place for place in range(len(self.live)) if place not in places]
        if places:
            self.live = [self.live[place] for place in kept]
            self._largest = self._largest[kept]
            self._current = self._current.kept(kept)
        return kept

    def _drop_degenerate(self, places: Collection[int]) -> list[int]:
        self._run.degenerate.update(self.live[place] for place in places)
        return self.drop(places)

    def _drop_unsure(self, state: BatchedStatistics) -> list[int]:
        """Takes out the starts that must go on alone; says who stays."""
        places: list[int] = state.unsure.nonzero()[:, 0].tolist()
        self._run.alone.update(self.live[place] for place in places)
        return self.drop(places)

    def _e_step(self, params: Params) -> BatchedStatistics:
        """The statistics and the objective of every live start at new parameters."""
        state = self._steps.e_step(params)
        for way in self.ways:
            way.evaluations += 1
        return state

    def _record(self, state: BatchedStatistics) -> None:
        """Makes a state the current one and hands every start its own."""
        self._current = state
        for place, (way, value) in enumerate(
            zip(self.ways, state.objectives.tolist(), strict=True)
        ):
            way.take(chosen(state.params, place), value)
