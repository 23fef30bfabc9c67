"""The modes of torch's functions under which a model runs, as long as they have a use.

A mode is asked at each function of torch, which doubles the time of a run on little data. Whether a
model has float32 tensors, or factorises large matrices, its first run shows: later ones make the
same statements.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ember.inference.inputs.shelter import Promoted
from ember.inference.reading.known_factors import KnownFactors, Remembered
from ember.inference.reading.known_results import KnownResults, Result

__all__ = ["Modes", "Watch"]


@dataclass(frozen=True)
class Modes:
    """Which modes the first run of a model has had a use for.

    Attributes:
        promotes: Whether some tensor had to be promoted to float64.
        remembers: Whether some matrix was large enough for its factor to be remembered.
    """

    promotes: bool = True
    remembers: bool = True

    @contextlib.contextmanager
    def __call__(self, remembered: Remembered) -> Iterator[None]:
        """Runs its body under them."""
        with contextlib.ExitStack() as stack:
            if self.promotes:
                stack.enter_context(Promoted())
            if self.remembers:
                stack.enter_context(KnownFactors(remembered))
            if remembered.results is not None:
                stack.enter_context(KnownResults(remembered.results))
            yield


class Watch:
    """All modes, around a first run; afterwards ``modes`` says which of them it had a use for.

    Attributes:
        remembered: The factors of its large matrices, and what it computes of its data alone.
    """

    def __init__(self) -> None:
        self.remembered = Remembered()
        results: list[Result] = []
        self.remembered.results = results
        self._promoted, self._known = Promoted(), KnownFactors(self.remembered)
        self._results = KnownResults(results)

    @property
    def modes(self) -> Modes:
        """Those that had a use."""
        return Modes(self._promoted.had_use, self._known.had_use)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Runs its body under all of them."""
        with self._promoted, self._known, self._results:
            yield
