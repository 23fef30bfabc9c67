"""The way of one start: where it is, and the objective and time of each step that led there."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from torch import Tensor

from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["Iteration", "Movement", "Trajectory"]


NOTHING = 1e-12  # a relative step that is rounding


@dataclass(frozen=True)
class Movement:
    """Two successive EM steps: their lengths, and what the objective gained over the last.

    A length is the largest relative change of a parameter; ``previous`` is 0 before the first step.
    """

    previous: float
    last: float
    gain: float

    @classmethod
    def over(
        cls,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        gain: float,
        previous: float = 0.0,
    ) -> Self:
        """The movement of an EM step from ``before`` to ``after``."""
        return cls(previous, Coordinates.distance(before, after), gain)

    @property
    def is_nothing(self) -> bool:
        """Whether the last step was rounding."""
        return self.last <= NOTHING

    @property
    def rate(self) -> float:
        """How many times as long the last step was as the one before."""
        return self.last / self.previous if self.previous > 0 else math.inf

    @property
    def remaining_step(self) -> float:
        """Estimated relative distance of the parameters from the limit."""
        if self.is_nothing:
            return self.last
        return self.last * self.rate / (1.0 - self.rate) if self.rate < 1.0 else math.inf

    @property
    def remaining_gain(self) -> float:
        """Estimated gain of the objective that further iterations would bring."""
        gain = max(self.gain, 0.0)
        if self.is_nothing:
            return gain
        return gain * self.rate**2 / (1.0 - self.rate**2) if self.rate < 1.0 else math.inf


class Iteration(NamedTuple):
    """One iteration: the objective after it, the best before it, and the EM movement seen in it.

    The best is that of the iterations of ``Trajectory.iterations``, minus infinity for the first.
    """

    objective: float
    best: float
    movement: Movement


@dataclass
class Trajectory:
    """The record of one start, which grows by each step, whoever takes it.

    Attributes:
        params: The parameters reached.
        began: When the fit began, by ``time.perf_counter``.
        history: The objective at the start and after each step. A fall within rounding is no fall:
            it keeps the best value seen.
        times: Seconds since ``began`` at each entry of the history. An interrupt while a step is
            recorded leaves a time too many at most.
        evaluations: Passes over the data.
        iterations: The iterations since the start, or since a leap to another place, from where on
            the pace has to be learnt anew. A batch of starts records none.
    """

    params: dict[str, Tensor]
    began: float = field(default_factory=time.perf_counter)
    history: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    evaluations: int = 0
    iterations: list[Iteration] = field(default_factory=list)

    @classmethod
    def through(cls, steps: Sequence[Statistics]) -> Self:
        """The way of plain EM that the results of its E-steps tell of, in their order."""
        way = cls(steps[0].params)
        way.take(steps[0].params, steps[0].objective)
        length = 0.0
        for before, after in itertools.pairwise(steps):
            gain = after.objective - before.objective
            movement = Movement.over(before.params, after.params, gain, length)
            way.take(after.params, after.objective, movement)
            length = movement.last
        return way

    def take(
        self, params: dict[str, Tensor], objective: float, movement: Movement | None = None
    ) -> None:
        """One more step; without a movement it is a leap."""
        if movement is None:
            self.iterations.clear()
        else:
            best = max((max(i.best, i.objective) for i in self.iterations[-1:]), default=-math.inf)
            self.iterations.append(Iteration(objective, best, movement))
        self.params = params
        self._record(len(self.history), objective)

    def begin(self, objective: float) -> None:
        """The objective where a loop begins; it replaces what was said last of the same place."""
        self.iterations.clear()
        self._record(max(len(self.history) - 1, 0), objective)

    def _record(self, place: int, objective: float) -> None:
        best = max([objective, *self.history[:place][-1:]])
        self.times[place:] = [time.perf_counter() - self.began]
        self.history[place:] = [best]  # comes last: its length says how far the start has come
