"""How sure a fit is of its estimates: standard errors, intervals, draws."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ember.inference.answers import Answers, fresh_seed
from ember.inference.inputs.options import check_count
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.loop import DataLost
from ember.inference.plan.without_data import PlanWithoutData
from ember.inference.queries import relabelling
from ember.inference.queries.uncertainty.drawn import DrawnUncertainty
from ember.inference.queries.uncertainty.intervals import Interval, check_level
from ember.inference.queries.uncertainty.passes import passes_of
from ember.inference.queries.uncertainty.uncertainty import Uncertainty

__all__ = ["Certainty"]


DRAWS = 2000  # from a posterior of the parameters, for errors and intervals


class Certainty(Answers):
    """The part of ``Fit`` that says how sure the estimates are."""

    guide: Any
    renumbered: tuple[tuple[str, list[int]], ...]

    def posterior_samples(self, n: int, seed: int | None = None) -> dict[str, Tensor]:
        """Draws ``n`` values of the parameters from an SVI fit's guide, site name to ``(n, ...)``.

        And of the Gaussian latents that the guide covers.

        Raises:
            ValueError: If the fit has no guide: EM gives a point.
        """
        if self.guide is None:
            raise ValueError(
                f"{self.method} gives a point, not a posterior of the parameters; "
                "fit SVI(model, guide='normal') to draw from one."
            )
        check_count("n", n)
        with sheltered(fresh_seed(seed), self._data):
            draws: dict[str, Tensor] = self.guide.draw(n)
            for latent, order in self.renumbered:
                draws = relabelling.permute(self.plan, draws, latent, order, lead=1)
            return draws

    def standard_errors(self, robust: bool = False) -> dict[str, Tensor]:
        r"""The standard error of every estimate, without bootstrap.

        .. math:: \operatorname{Cov} \hat\theta \approx J \Big(-\nabla_u^2 \log p(x, \hat\theta)
                  \Big)^{-1} J^\top

        with the observed information in unconstrained coordinates :math:`u` (for MAP of the log
        posterior, as a density in the space in which the model declares it) and the Jacobian
        :math:`J` of the map to the parameters. It takes two E-steps for each free parameter, once
        for a fit; of data in pieces (``fit_batches``) they share a few passes over the loader,
        which must still give them, in all processes at once if there are several. Where the method
        has found a posterior of the parameters (``VBEM``, ``NUTS``, ``Laplace``, ``SVI`` with a
        normal guide), it is that of the draws.

        Args:
            robust: Whether to compute the sandwich from the scores of the rows (of chains: of the
                sequences), which holds if the model is wrong about the spread of the data.

        Returns:
            Site to standard errors, in the shapes of ``params``, then those of what
            ``pyro.deterministic`` computes. An estimate at a boundary, and one that the data do not
            identify, has NaN; where it is fixed by its support (a simplex of one), 0.

        Warns:
            RuntimeWarning: Naming what has no standard error, and why; or if the estimates are no
                maximum.

        Raises:
            ValueError: If the objective has no maximum there, the model has no parameters, rows
                are not independent (``robust``), or the data are no longer there.

        Reference: Louis (1982), *Finding the observed information matrix when using the EM
        algorithm*, JRSS B 44, 226-233; Jamshidian & Jennrich (2000), JRSS B 62, 257-270.

        Example:
            >>> from ember.inference import EM
            >>> from ember.inference.tables import old_faithful
            >>> from ember.models import gaussian_mixture
            >>> fit = EM(gaussian_mixture, "mle", seed=0).fit(old_faithful(), components=2)
            >>> fit.standard_errors()["locs"].round(decimals=3).tolist()
            [[0.031, 0.456], [0.027, 0.592]]
        """
        found = self._warned_uncertainty()
        with self._asking():
            return found.by_site(found.standard_errors(robust))

    def confidence_intervals(
        self, level: float = 0.95, robust: bool = False
    ) -> dict[str, Interval]:
        """The confidence interval of every estimate: normal where it is free, and mapped back.

        An interval of a positive number comes from its logarithm, one of a probability from its
        logit, so none leaves the support. See ``standard_errors`` for how they are made, and for
        what is NaN.

        Args:
            level: The probability with which an interval should cover the truth.
            robust: Whether to use the sandwich.

        Returns:
            Site to ``(lower, upper)``, each in the shape of the estimate.

        Raises:
            ValueError: If the level is not between 0 and 1; as ``standard_errors``.

        Example:
            >>> from ember.inference import EM
            >>> from ember.models import poisson_mixture
            >>> visits = torch.tensor([0.0, 1, 2, 9, 11])
            >>> fit = EM(poisson_mixture, "mle", seed=0).fit(visits, components=2)
            >>> lower, upper = fit.confidence_intervals()["rates"]
            >>> [round(value, 2) for value in (lower[0].item(), upper[0].item())]
            [0.32, 3.11]
        """
        level = check_level(level)
        found = self._warned_uncertainty()
        with self._asking():
            lower, upper = map(found.by_site, found.intervals(level, robust))
        return {name: Interval(lower[name], upper[name]) for name in lower}

    def vcov(self, robust: bool = False) -> pd.DataFrame:
        """The covariance of all estimates, labelled as in ``summary()``; see ``standard_errors``.

        It is singular where entries determine each other, as those of a simplex do.
        """
        found = self._warned_uncertainty()
        with self._asking():
            labels = found.labels
            return pd.DataFrame(found.vcov(robust).cpu().numpy(), index=labels, columns=labels)

    def laplace_samples(self, n: int, seed: int | None = None) -> dict[str, Tensor]:
        """Draws ``n`` values of the parameters from the normal approximation at the estimates.

        The normal is that of the unconstrained coordinates, with the observed information as its
        precision, so draws never leave the supports. Directions that the data do not identify, and
        estimates at a boundary, stay where they are.

        Args:
            n: The number of draws.
            seed: Makes the draws repeatable; torch's global random state governs them otherwise.

        Returns:
            Site to ``(n, ...)``.

        Warns:
            RuntimeWarning: As ``standard_errors``.

        Reference: Tierney & Kadane (1986), *Accurate approximations for posterior moments and
        marginal densities*, JASA 81, 82-86.
        """
        check_count("n", n)
        found = self._warned_uncertainty()
        with sheltered(fresh_seed(seed), self._data), torch.no_grad():
            return found.draws(n)

    @property
    def has_posterior(self) -> bool:
        """Whether the method has found a posterior of the parameters, to draw from."""
        return self.guide is not None and not self.guide.is_delta

    @functools.cached_property
    def _uncertainty(self) -> Uncertainty | DrawnUncertainty:
        if self.has_posterior:
            draws, exact = self.posterior_draws(), self._posterior_deviations()
            with sheltered(0, self._data), torch.no_grad():
                return DrawnUncertainty(self.plan, self.params, draws, exact)
        if self.stop in (StopReason.DEGENERATE, StopReason.UNBOUNDED):
            raise ValueError(
                f"standard errors need a maximum, and this fit has none: {self.stop_reason}"
            )
        if not self.params:
            raise ValueError("the model has no parameters, so there is nothing to be unsure of.")
        with self._asking():
            return Uncertainty(passes_of(self.plan), self.params, self.stop is StopReason.INFINITE)

    def posterior_draws(self) -> dict[str, Tensor]:
        """The draws by which the spread of a posterior is told."""
        return self.posterior_samples(DRAWS, seed=0)

    def _posterior_deviations(self) -> dict[str, Tensor]:
        """Standard deviations of the posterior that are known without draws."""
        return {}

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Sheltered, for what may pass over the data; of data that are lost it says so."""
        plan = self.plan
        passes = plan.passes if isinstance(plan, PlanWithoutData) else None
        with sheltered(data=self._data if passes is None else passes.data), torch.no_grad():
            try:
                yield
            except DataLost as error:
                raise ValueError(
                    f"standard errors take further passes over the pieces: {error}"
                ) from error
            finally:
                if passes is not None:
                    passes.end()

    def _warned_uncertainty(self) -> Uncertainty | DrawnUncertainty:
        """What is known of the estimates' errors, with a warning if something has none."""
        found = self._uncertainty
        for note in found.notes:
            warnings.warn(f"{self.method}: {note}", RuntimeWarning, stacklevel=3)
        return found
