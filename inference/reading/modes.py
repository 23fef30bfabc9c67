"""The modes of torch's functions under which a model runs, as long as they have a use.

A mode is asked at each function of torch, which doubles the time of a run on little data. Whether a
model has float32 tensors, or factorises large matrices, its first runs show: later ones make the
same statements.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ember.inference.inputs.shelter import Promoted
from ember.inference.reading.known_factors import KnownFactors, Remembered

__all__ = ["Needs"]


@dataclass(eq=False)
class Needs:
    """Which modes the watched runs of a model have had a use for.

    Attributes:
        promotion: Whether some tensor had to be promoted to float64.
        factors: Whether some matrix was large enough for its factor to be remembered.
    """

    promotion: bool = False
    factors: bool = False

    @contextlib.contextmanager
    def watched(self, remembered: Remembered) -> Iterator[None]:
        """Runs its body under all modes, and notes those that had a use."""
        promoted, known = Promoted(), KnownFactors(remembered)
        try:
            with promoted, known:
                yield
        finally:
            self.promotion |= promoted.had_use
            self.factors |= known.had_use

    @contextlib.contextmanager
    def served(self, remembered: Remembered) -> Iterator[None]:
        """Runs its body under the modes that had a use."""
        with contextlib.ExitStack() as stack:
            if self.promotion:
                stack.enter_context(Promoted())
            if self.factors:
                stack.enter_context(KnownFactors(remembered))
            yield
