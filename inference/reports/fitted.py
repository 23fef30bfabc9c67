"""What tables and pictures read of a fit."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from ember.inference.iteration.restarts.record import Starts
from ember.inference.iteration.run import MonteCarloErrors
from ember.inference.optimality.certificate import Certificate
from ember.inference.plan.plan import Params, Plan
from ember.inference.variational.guides import LearntGuide

__all__ = ["Fitted", "Sure"]


class Sure(Protocol):
    """How sure the estimates of a fit are, whether by their curvature or by draws."""

    def errors_of(self, function: Callable[[Params], Tensor]) -> Tensor:
        """Standard errors of numbers ``(F,)`` that follow from the parameters."""


class Fitted(Protocol):
    """A fit, however it was made; ``Fit`` says what each attribute is."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def objective(self) -> str:
        """The objective: "map" or "mle"."""

    @property
    def params(self) -> dict[str, Tensor]:
        """The estimates."""

    @property
    def log_likelihood(self) -> float:
        """Of the estimates."""

    @property
    def log_posterior(self) -> float:
        """Of the estimates."""

    @property
    def history(self) -> Tensor:
        """The objective at the start and after each iteration."""

    @property
    def times(self) -> Tensor:
        """Seconds at each entry of the history."""

    @property
    def evaluations(self) -> int:
        """Number of passes over the data."""

    @property
    def plan(self) -> Plan:
        """The plan of model and data."""

    @property
    def monte_carlo(self) -> MonteCarloErrors | None:
        """The Monte Carlo errors of estimates from draws."""

    @property
    def starts(self) -> Starts:
        """What became of every start."""

    @property
    def certificate(self) -> Certificate | None:
        """Slope and curvature where the fit has converged."""

    @property
    def guide(self) -> LearntGuide | None:
        """For SVI the learnt guide."""

    @property
    def has_posterior(self) -> bool:
        """Whether the method has found a posterior of the parameters."""

    @property
    def seconds(self) -> float:
        """Wall time of the fit."""

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Names of columns."""

    @property
    def axes(self) -> dict[str, dict[int, tuple[str, ...]]]:
        """Names of axes."""

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Labels behind the codes of columns."""

    @property
    def node_gaps(self) -> dict[str, float]:
        """For each continuous latent, the gap between even and odd nodes."""

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
