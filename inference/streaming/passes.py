"""Further passes over the pieces of a fit that has ended, for the errors of its estimates."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from ember.inference.iteration.loop import DataLost
from ember.inference.parameters.supports import all_finite
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.streaming.kept_plans import KeptPlans
from ember.inference.streaming.ranks import ranks_at_hand
from ember.inference.streaming.stream import Stream
from ember.inference.streaming.workers import takes_work

__all__ = ["MANY", "PassesOverPieces"]

T = TypeVar("T")

MANY = torch.empty(()).expand(1_000_000)  # stands for data that pay for all threads
AT_ONCE = 500_000  # numbers in the statistics that one pass adds up
SAME = 1e-8  # relative difference of objectives at the same parameters


@dataclass(frozen=True, eq=False)
class PassesOverPieces:
    """The pieces of a fit, as what is asked afterwards sees them (see ``Passes``).

    Attributes:
        stream: The pieces.
        params: The estimates.
        objective: The objective there.
    """

    stream: Stream
    params: Params
    objective: float

    @property
    def plan(self) -> Plan:
        """The plan for the sampled rows, with the prior of all rows."""
        return self.stream.template

    @property
    def data(self) -> object:
        """Pieces decide for themselves how many threads they pay for."""
        return MANY

    @property
    def units(self) -> int:
        """The number of rows, or of pieces that are a sequence each."""
        return self.stream.pieces if self.plan.row is None else self.stream.rows

    def statistics(self, params: Params) -> Statistics:
        """One E-step, in a pass of its own.

        Raises:
            DataLost: If the pieces are no longer those of the fit.
        """
        found = self._at_hand().statistics(params)
        same = all(torch.equal(value, params[name]) for name, value in self.params.items())
        apart = abs(found.objective - self.objective)
        if same and not apart <= SAME * (1.0 + abs(self.objective)):
            raise DataLost(
                f"the loader gives other data than in the fit: the objective was "
                f"{self.objective:.6f} and is {found.objective:.6f} at the same parameters."
            )
        return found

    def statistics_at(self, points: Iterable[Params]) -> Iterator[Statistics | None]:
        """An E-step at each of many parameters, hundreds of them in a pass."""
        stream, rest = self._at_hand(), iter(points)
        start = self.plan.structure.start
        with torch.no_grad():
            size = sum(t.natural_parameters(start).numel() for t in self.plan.tied.values())
        while block := list(itertools.islice(rest, max(AT_ONCE // max(size, 1), 1))):
            found: list[Statistics] | None = None
            if all(map(all_finite, block)):
                # Where data lie far beyond, a model may refuse parameters.
                try:
                    found = stream.statistics_at(block, curved=False)
                except (RuntimeError, ValueError, ArithmeticError):
                    found = None
            yield from [None] * len(block) if found is None else found

    def total(self, question: Callable[[Plan], T], add: Callable[[T, T], T]) -> T:
        """What all pieces answer to a question, in one pass."""
        return self._at_hand().total(question, add)

    def end(self) -> None:
        """Forgets what has been kept from pass to pass: a fit holds no rows."""
        self.plan.once(KeptPlans).clear()

    def _at_hand(self) -> Stream:
        """The stream without workers that are gone, once all processes ask.

        Raises:
            DataLost: If the processes of the fit are gone, or some of them do not ask.
        """
        stream = self.stream
        if stream.ranks.count > 1:
            if ranks_at_hand().count != stream.ranks.count:
                raise DataLost("the other processes of the fit are gone.")
            stream.ranks.meet()
        if stream.executor is not None and not takes_work(stream.executor):
            return dataclasses.replace(stream, executor=None)
        return stream
