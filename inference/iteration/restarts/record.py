"""What became of every start: how it began, how far it was run, and where it ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Starts"]


@dataclass(frozen=True, eq=False)
class Starts:
    """The record of the starts of one fit, in the order in which they were made.

    Attributes:
        objectives: The objective of each start, ``(R,)`` float64: final for those carried on, the
            value after the short run for the others.
        carried: Whether each start was run to its end.
        kinds: How each start began: "kmeans", "points", "random", "hierarchical", "sticky",
            "windows", "prior" or "given" (a dict or a callable).
        degenerate: Whether a component collapsed or emptied on the way.
        best: The objective of the result that was kept.
        reached: How many of those carried on ended at the best objective, within ``tolerance``.
        tolerance: How far below the best counts as having reached it.
        histories: The objective of each start after each of its steps.

    Example:
        >>> from ember.inference import EM
        >>> from ember.models import poisson_mixture
        >>> counts = torch.tensor([0.0, 1, 0, 2, 1, 9, 11, 8, 10, 12])
        >>> fit = EM(poisson_mixture, restarts=4, seed=0).fit(counts, components=2)
        >>> len(fit.starts), fit.starts.kinds
        (4, ('kmeans', 'points', 'random', 'hierarchical'))
    """

    objectives: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    carried: Sequence[bool] = ()
    kinds: Sequence[str] = ()
    degenerate: Sequence[bool] = ()
    best: float = float("nan")
    tolerance: float = 0.0
    histories: Sequence[Tensor] = ()

    @property
    def reached(self) -> int:
        """How many of those carried on ended at the best objective."""
        ended = zip(self.objectives.tolist(), self.carried, strict=True)
        return sum(ran and abs(value - self.best) <= self.tolerance for value, ran in ended)

    def __len__(self) -> int:
        return len(self.objectives)

    def __str__(self) -> str:
        if len(self) < 2:
            return f"{len(self)} start"
        failed = sum(self.degenerate)
        dropped = f", {failed} degenerated" if failed else ""
        return (
            f"{len(self)}, {sum(self.carried)} of them run to the end{dropped}; {self.reached} "
            f"reached the best objective, {self.best:.6f}"
        )
