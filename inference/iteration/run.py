"""The result of a run of EM: where it ended, the way there, and why it ended."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.restarts.record import Starts
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.optimality.certificate import Certificate
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["MonteCarloErrors", "Run"]

NAMED = (StopReason.DEGENERATE, StopReason.INFINITE, StopReason.UNBOUNDED)  # the warning says where


@dataclass(frozen=True, eq=False)
class MonteCarloErrors:
    """How far estimates from draws are from those that more draws would give.

    Attributes:
        errors: The Monte Carlo standard error of each entry of each parameter.
        share: The largest of them, in standard errors of the estimate.
        draws: How many draws of each unit they are from.
    """

    errors: dict[str, Tensor]
    share: float
    draws: int


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
    monte_carlo: MonteCarloErrors | None = None
    certificate: Certificate | None = None

    @classmethod
    def at_end(
        cls, way: Trajectory, final: Statistics, plan: Plan, method: str, stop: StopReason
    ) -> Self:
        """The result of a trajectory that has come to its last E-step."""
        return cls(
            method=method,
            objective=plan.objective,
            params=final.params,
            log_likelihood=final.log_likelihood,
            log_posterior=final.objective,
            history=torch.tensor(way.history, dtype=torch.float64, device="cpu"),
            times=torch.tensor(way.times[: len(way.history)], dtype=torch.float64, device="cpu"),
            evaluations=way.evaluations,
            stop=stop,
            plan=plan,
        )

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

    def after(self, before: Run) -> Run:
        """This run as the continuation of another, which ended where it begins.

        Where the objective is another one there, on more nodes, say, the history of the run before
        is moved by the difference.
        """
        moved = before.history + (self.history[0] - before.history[-1])
        return dataclasses.replace(
            self,
            history=torch.cat([moved, self.history[1:]]),
            times=torch.cat([before.times, self.times[1:]]),
            evaluations=before.evaluations + self.evaluations,
            starts=before.starts,
        )

    def told_of_nodes(self, warning: str) -> Run:
        """The run with a sentence about nodes that are too few, if they are.

        The errors of their integrals may well be why an objective fell.
        """
        if warning and self.stop is StopReason.DECREASED:
            return dataclasses.replace(self, stop=StopReason.COARSE, warning=warning)
        return dataclasses.replace(self, warning=self.warning or warning)

    @property
    def iterations(self) -> int:
        """Number of iterations after the start."""
        return len(self.history) - 1
