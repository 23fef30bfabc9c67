"""The result of a run of EM: where it ended, the way there, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.restarts.record import Starts
from ember.inference.plan.plan import Plan

__all__ = ["Run"]

NAMED = (StopReason.DEGENERATE, StopReason.INFINITE, StopReason.UNBOUNDED)  # the warning says where


@dataclass(frozen=True, eq=False)
class Run:
    """Estimates, and how they were reached; see ``Fit`` for what each attribute is."""

    method: str
    objective: str
    params: dict[str, Tensor]
    log_likelihood: float
    log_posterior: float
    history: Tensor
    times: Tensor
    evaluations: int
    stop: StopReason
    plan: Plan = field(repr=False)
    warning: str = ""
    starts: Starts = field(default_factory=Starts)

    @property
    def stop_reason(self) -> str:
        """Why the fit ended, in words."""
        return f"{self.stop.value} ({self.warning})" if self.stop in NAMED else self.stop.value

    @property
    def converged(self) -> bool:
        """Whether the fit ended because nothing was left to gain."""
        return self.stop.is_convergence

    @property
    def is_degenerate(self) -> bool:
        """Whether a component collapsed or emptied on the way."""
        return self.stop is StopReason.DEGENERATE

    @property
    def iterations(self) -> int:
        """Number of iterations after the start."""
        return len(self.history) - 1
