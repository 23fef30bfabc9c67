"""The M-step, the score and their coordinates, written down once and played back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.objective import score
from ember.inference.maximisation.replayed_search import ReplayedSearches
from ember.inference.numerics.replay.replayed import Replayed
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.of_statistics import OfStatistics, Reads, given
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["ReplayedCoordinates", "ReplayedMStep"]


class ReplayedMStep:
    """Gives what the M-step gives, up to rounding.

    It is played back as a whole where each update has a closed form; of numerical searches, what
    they search.

    Args:
        plan: The plan.
        reads: What its statistics read; None if nothing can be played back.
    """

    def __init__(self, plan: Plan, reads: Reads | None) -> None:
        self._m_step = MStep.of(plan)
        self._names = tuple(plan.structure.parameters)
        self._replayed = OfStatistics(partial(_values, self._m_step, self._names), reads)
        if self._m_step.is_numerical:
            self._m_step = self._m_step.searching(ReplayedSearches(reads))

    @staticmethod
    def of(plan: Plan, reads: Reads | None) -> ReplayedMStep:
        """That of a plan, which keeps it."""
        return plan.once(ReplayedMStep, reads)

    def __call__(self, statistics: Statistics) -> dict[str, Tensor]:
        """The parameters; see ``MStep``."""
        if self._m_step.is_numerical:
            return self._m_step(statistics)
        found = self._replayed(statistics)
        return {**statistics.params, **dict(zip(self._names, found, strict=True))}


def _values(m_step: MStep, names: Sequence[str], statistics: Statistics) -> Sequence[Tensor]:
    params = m_step(statistics)
    return [params[name] for name in names]


class ReplayedCoordinates(Coordinates):
    """Coordinates that a run goes to and fro: ``flatten``, ``unflatten`` and the score in them.

    Args:
        plan: The plan.
        reads: What its statistics read; None if nothing can be played back.
    """

    def __init__(self, plan: Plan, reads: Reads | None) -> None:
        parameters, roots = plan.structure.parameters, plan.superposed_parameters()
        super().__init__(parameters, roots)
        names, plain = tuple(parameters), Coordinates(parameters, roots)
        self._names = names
        self._flat = Replayed(
            lambda *values: [plain.flatten(dict(zip(names, values, strict=True)))]
        )
        self._unflat = Replayed(lambda vector: list(plain.unflatten(vector).values()))
        self._score = OfStatistics(lambda statistics: [score(statistics, plain)], reads)

    @staticmethod
    def of(plan: Plan, reads: Reads | None) -> ReplayedCoordinates:
        """Those of a plan, which keeps them."""
        return plan.once(ReplayedCoordinates, reads)

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """See ``Coordinates``."""
        (vector,) = given(self._flat(*(params[name] for name in self._names)))
        return vector

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """See ``Coordinates``."""
        return dict(zip(self._names, given(self._unflat(vector)), strict=True))

    def quick_score(self, statistics: Statistics) -> Tensor:
        """See ``score``."""
        (gradient,) = self._score(statistics)
        return gradient
