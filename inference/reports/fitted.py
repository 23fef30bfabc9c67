"""What tables and pictures read of a fit."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ember.inference.iteration.restarts.record import Starts
from ember.inference.plan.plan import Plan
from ember.inference.variational.guides import LearntGuide

__all__ = ["Fitted"]


class Fitted(Protocol):
    """A fit, however it was made; ``Fit`` says what each attribute is."""

    method: str
    objective: str
    params: dict[str, Tensor]
    log_likelihood: float
    log_posterior: float
    history: Tensor
    times: Tensor
    evaluations: int
    plan: Plan
    starts: Starts
    guide: LearntGuide | None
    seconds: float
    columns: dict[str, tuple[str, ...]]
    axes: dict[str, dict[int, tuple[str, ...]]]

    @property
    def stop_reason(self) -> str:
        """Why the fit ended, in words."""

    @property
    def converged(self) -> bool:
        """Whether the fit ended because nothing was left to gain."""

    @property
    def iterations(self) -> int:
        """Number of iterations after the start."""

    @property
    def n_parameters(self) -> int:
        """Number of free parameters."""

    @property
    def n_observations(self) -> float:
        """Number of observations."""

    @property
    def aic(self) -> float:
        """Akaike's criterion."""

    @property
    def bic(self) -> float:
        """Schwarz's criterion."""

    @property
    def deterministic(self) -> dict[str, Tensor]:
        """Values of the model's ``pyro.deterministic`` statements."""

    def plan_for(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Plan:
        """The plan for other data."""

    def argument_names(self) -> list[str]:
        """The names of the model's arguments."""
