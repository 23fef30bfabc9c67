"""All that is known of how sure a fit's estimates are, made once for a fit."""

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ember.inference.plan.plan import Params
from ember.inference.queries.uncertainty.entries import Entries, derivatives, entries_of
from ember.inference.queries.uncertainty.identification import Identification, identification
from ember.inference.queries.uncertainty.intervals import Interval, between_bounds
from ember.inference.queries.uncertainty.observed_information import (
    ObservedInformation,
    observed_information,
)
from ember.inference.queries.uncertainty.passes import Passes
from ember.inference.queries.uncertainty.sandwich import Rows, spread_of_scores
from ember.inference.queries.uncertainty.superfluous_states import superfluous_states

__all__ = ["Uncertainty"]


SHOWN = 4  # entries that are named
HEAVY = 0.3  # of the heaviest entry's share in a direction
DISTANT = 0.1  # standard errors between estimates and the maximum
DRAWN = 0.6  # of estimates from draws, each of which may be a tenth away


class Uncertainty:
    """The information at estimates, and what follows from it.

    Args:
        data: The data, with the plan of the model.
        params: The estimates.
        is_infinite: Whether the fit has found some of them to run to infinity.

    Attributes:
        entries: The entries of all parameters, and of what is computed from them.
        notes: A sentence for whatever has no standard error, and one if the estimates are no
            maximum; empty if there is nothing to say.

    Raises:
        ValueError: If the objective has no finite curvature at the estimates.
    """

    def __init__(self, data: Passes, params: Params, is_infinite: bool = False) -> None:
        self._data, self._params = data, dict(params)
        self._information: ObservedInformation = observed_information(data, params, is_infinite)
        self._identified: Identification = identification(self._information)
        self.entries: Entries = entries_of(data.plan, params, self._information)
        idle = self._identified.is_idle(self.entries.jacobian)
        nothing, sentences = idle & False, list[str]()
        if bool((idle | self.entries.at_boundary).any()):
            nothing, sentences = superfluous_states(data, params, self.entries)
        self._unknown = self.entries.at_boundary | idle | nothing
        self.notes = (*sentences, *self._noted(~nothing, idle))

    @property
    def labels(self) -> list[str]:
        """The name of each entry."""
        return self.entries.labels

    def by_site(self, flat: Tensor) -> dict[str, Tensor]:
        """One number for each entry, in the shapes of the sites."""
        return self.entries.by_site(flat)

    @property
    def distance(self) -> float:
        """How far the maximum is by Newton's method, in standard errors."""
        if self._information.has_edges:  # a slope next to a kink is any number
            return 0.0
        return float((self._identified.root.mT @ self._information.gradient).norm())

    @property
    def _is_drawn(self) -> bool:
        """Whether the estimates are from draws of latents."""
        return any(component.monte_carlo is not None for component in self._data.plan.units)

    def vcov(self, robust: bool = False) -> Tensor:
        """The covariance of all entries, ``(E, E)``; NaN where it is not known."""
        jacobian = self.entries.jacobian
        found = jacobian @ self._covariance(robust) @ jacobian.mT
        unknown = self._unknown
        return torch.where(unknown | unknown.unsqueeze(-1), torch.nan, found)

    def standard_errors(self, robust: bool = False) -> Tensor:
        """The standard error of each entry, ``(E,)``; NaN where it is not known."""
        jacobian = self.entries.jacobian
        variances = (jacobian @ self._covariance(robust) * jacobian).sum(-1)
        return torch.where(self._unknown, torch.nan, variances.clamp_min(0.0).sqrt())

    def intervals(self, level: float, robust: bool = False) -> Interval:
        """The confidence interval of each entry, ``(E,)``; NaN where it is not known."""
        found, errors = self.entries, self.standard_errors(robust)
        return between_bounds(found.values, errors, found.lower, found.upper, level)

    def errors_of(self, function: Callable[[Params], Tensor]) -> Tensor:
        """Standard errors of numbers ``(F,)`` that follow from the parameters; NaN if not known."""
        jacobian = derivatives(function, self._information)
        variances = (jacobian @ self._identified.covariance * jacobian).sum(-1)
        idle = self._identified.is_idle(jacobian)
        return torch.where(idle, torch.nan, variances.clamp_min(0.0).sqrt())

    def draws(self, n: int) -> dict[str, Tensor]:
        """Values of the parameters from the normal approximation in unconstrained coordinates.

        Directions that are not identified, and coordinates at a boundary, stay at the estimates.
        """
        information, root = self._information, self._identified.root
        noise = torch.randn(n, root.shape[-1], dtype=root.dtype)
        free = information.coordinates.flatten(self._params).expand(n, -1).clone()
        free[:, information.places] += noise @ root.mT
        return information.coordinates.unflatten(free)

    def _covariance(self, robust: bool) -> Tensor:
        return self._robust_covariance if robust else self._identified.covariance

    @functools.cached_property
    def _robust_covariance(self) -> Tensor:
        bread = self._identified.covariance
        known = self._information
        rows = Rows(self._params, known.coordinates, known.point, known.places, known.steps)
        return bread @ spread_of_scores(self._data, rows) @ bread

    def _noted(self, among: Tensor, idle: Tensor) -> Iterator[str]:
        """A sentence for each thing that an analyst should know of some entries."""
        entries = self.entries
        held = (entries.at_boundary & among).nonzero()[:, 0].tolist()
        if held:
            are = "is" if len(held) == 1 else "are"
            yield (
                f"{_named(entries.labels, held)} {are} at a boundary (or on the way to infinity): "
                "held fixed there, without a standard error (NaN); those of the others take it as "
                "known."
            )
        idle = idle & ~entries.at_boundary & among
        if bool(idle.any()) and self._identified.is_maximum:
            yield (
                f"the data do not identify {self._heaviest(idle)}: other values fit as well, so "
                "there is no standard error (NaN) for what they move."
            )
        if not self._identified.is_maximum:
            yield (
                "the objective is curved upwards at the estimates, which are no maximum; what that "
                "concerns has no standard error (NaN), and fit.stop_reason says how the fit ended."
            )
        elif self.distance > (DRAWN if self._is_drawn else DISTANT):
            yield (
                f"the estimates are some {self.distance:.2g} standard errors away from the maximum "
                "of the objective: the fit has not converged (tol, max_iter), or has maximised "
                "another one (assignment='hard', a variational bound)."
            )

    def _heaviest(self, idle: Tensor) -> str:
        """The entries that idle directions move most, in units of their own coordinates."""
        found = self._identified
        scaled = self.entries.jacobian * found.units
        length = torch.linalg.vector_norm(scaled, dim=-1)
        shares = torch.linalg.vector_norm(scaled @ found.idle, dim=-1) / length
        shares = torch.where(idle, shares, 0.0)
        heavy = (shares > HEAVY * shares.max()).nonzero()[:, 0]
        order = heavy[torch.argsort(shares[heavy], descending=True, stable=True)]
        return _named(self.entries.labels, order.tolist())


def _named(labels: Sequence[str], places: Sequence[int]) -> str:
    """The names of some entries, the first few of them."""
    names = [labels[i] for i in places[:SHOWN]]
    more = len(places) - SHOWN
    if more > 0:
        return f"{', '.join(names)} and {more} other{'s' if more > 1 else ''}"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
