"""The result that an analyst holds: estimates, how they were reached, what follows from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
import torch

from ember.inference.certainty import Certainty
from ember.inference.inputs.frames import Recipe
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.run import Run
from ember.inference.queries import criteria, relabelling
from ember.inference.queries.new_data import (
    argument_names,
)
from ember.inference.queries.uncertainty.intervals import check_level
from ember.inference.reports import naming, summary
from ember.inference.reports.latent_names import latent_axes

if TYPE_CHECKING:  # what draws loads Matplotlib and scipy.stats, a second that a fit does without
    from matplotlib.figure import Figure

__all__ = ["Fit"]


@dataclass(frozen=True, eq=False)
class Fit(Certainty):
    """A fitted model.

    Attributes:
        method: Name of the method, for tables and pictures.
        params: Site name to estimate, in the constrained space.
        log_likelihood: ``log p(data | params)``, latents integrated out, all constants included.
        log_posterior: ``log_likelihood`` plus the log prior density (equal to it for "mle").
        history: The objective at the start and after each iteration, float64; never decreases
            for EM (for SVI: the evidence lower bound after each step).
        times: Seconds since the start of the fit at each entry of ``history``, which is that of
            the start that was kept.
        seconds: Wall time of the fit: reading the model, every start, and the checks at the end.
        iterations: Number of iterations.
        evaluations: Number of passes over the data.
        stop_reason: Why the fit ended, in words.
        starts: What became of every start, the kept one included; see ``Starts``.
        monte_carlo: Where the search was one by draws, the Monte Carlo standard ``errors`` of the
            estimates, the largest of them in standard errors (``share``), and the number of draws.
        certificate: Where it has converged, how small the gradient is, and how strongly the
            objective is curved at least; see ``Certificate``. None where that is not known.
        guide: For SVI the learnt guide, callable like any; None for EM.
        columns: The names of columns, where the data came with them, by observed site and by
            argument of the model.
        axes: The same by parameter site and axis, and of effects of groups the labels of levels;
            see ``reports/naming.py`` and ``reports/latent_names.py``.
        recipe: How the model's arguments were made from tables, by which new tables are read alike.
        node_gaps: For each continuous latent, how far the integrals over its even and over its odd
            nodes differ in the log evidence of a row, at most. Up to about 0.1, the error of the
            integral is the square of that over 400, or less. For a latent that is integrated unit
            by unit, by how much more nodes change the log evidence of a unit, at most.
        renumbered: What ``relabel`` has done since: latents, and the order of their states.
    """

    guide: Any = field(default=None, repr=False)
    seconds: float = math.nan
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    axes: dict[str, dict[int, tuple[str, ...]]] = field(default_factory=dict, repr=False)
    node_gaps: dict[str, float] = field(default_factory=dict, repr=False)
    recipe: Recipe = field(default_factory=Recipe, repr=False)
    renumbered: tuple[tuple[str, list[int]], ...] = field(default=(), repr=False)

    @staticmethod
    def of(run: Run) -> Fit:
        """The fit that a run has led to."""
        return Fit(**vars(run))

    # -- how well it fits for what it costs ---------------------------------------------------

    @property
    def n_parameters(self) -> int:
        """Number of free parameters: a simplex of ``K`` counts ``K - 1``, held ones nothing."""
        return criteria.free_parameters(self.plan)

    @property
    def n_observations(self) -> float:
        """Number of observations: rows with their weights, or steps of chains."""
        return criteria.observations(self.plan)

    @property
    def aic(self) -> float:
        """Akaike's criterion, ``-2 log_likelihood + 2 n_parameters``; smaller is better."""
        return criteria.aic(self.log_likelihood, self.n_parameters)

    @property
    def bic(self) -> float:
        r"""Schwarz's criterion; smaller is better.

        .. math:: \mathrm{BIC} = -2 \log p(x \mid \hat\theta) + d \log n

        with :math:`d` free parameters and :math:`n` observations, at these estimates (Fraley &
        Raftery 2007, Journal of Classification 24, 155-181, for those of MAP).
        """
        return criteria.bic(self.log_likelihood, self.n_parameters, self.n_observations)

    @property
    def icl(self) -> float:
        """BIC plus twice the entropy of the latents' posterior; smaller is better."""
        with sheltered(data=self._data):
            return self.bic + 2.0 * criteria.entropy(self.plan, self.params)

    def relabel(self, order: Sequence[int] | str | None = None, latent: str | None = None) -> Fit:
        """The same fit with the states of a latent site renumbered.

        Args:
            order: Which state becomes state 0, 1, ...: a permutation; or the name of a parameter
                site, to sort by its first entry, smallest first; or None, to sort by the share
                of the data that each state explains, largest first.
            latent: The latent site; needed only if there are several.

        Raises:
            ValueError: If there is nothing to renumber, or the model tells the states apart.
        """
        with sheltered(data=self._data), torch.no_grad():
            found = relabelling.asked_order(self.plan, self.params, order, latent)
            return self._renumbered(*found)

    def _renumbered(self, latent: str, order: list[int]) -> Fit:
        """The same fit with the states of a latent in another order."""
        params = relabelling.permute(self.plan, self.params, latent, order)
        renumbered = (*self.renumbered, (latent, order))
        return dataclasses.replace(self, params=params, renumbered=renumbered)

    # -- tables -------------------------------------------------------------------------------

    def summary(
        self, errors: bool = False, level: float = 0.95, robust: bool = False
    ) -> pd.DataFrame:
        """One row for every parameter entry, then for those that ``pyro.deterministic`` computes.

        The column ``estimate`` holds the values; where the data came with names, ``column`` holds
        the name of the data's column that an entry belongs to (empty where there is none).

        Args:
            errors: Whether to add the columns ``std. error``, ``lower`` and ``upper``; see
                ``standard_errors`` and ``confidence_intervals``.
            level: The level of the intervals.
            robust: Whether errors come from the sandwich.
        """
        frame = summary.summary(self.params, self.deterministic, self.axes)
        if not errors:
            return frame
        level = check_level(level)
        found = self._warned_uncertainty()
        with self._asking():
            lower, upper = found.intervals(level, robust)
            return frame.assign(
                **{"std. error": found.standard_errors(robust).cpu().numpy()},
                lower=lower.cpu().numpy(),
                upper=upper.cpu().numpy(),
            )

    def plot(self, errors: bool = False) -> Figure:
        """A picture of the data with what was fitted to them.

        With ``errors`` the lines of regressions and the curves of items come with 95 % confidence
        bands, by the delta method from the observed information (see ``standard_errors``).

        ==============  ========================================================================
        mixtures        a histogram with the components' densities for one column, points and
                        ellipses for two, a grid of pairs for up to five, the discriminant plane
                        for more; items and categories as a table of probabilities
        chains          the data over time in the colours of their states, and the states'
                        posterior probabilities below
        regressions     points and fitted lines, a panel for each covariate
        random effects  posterior means of the levels in order, with 95 % intervals, and the data
                        against their expected values
        factors         the loadings as a table, and the posterior means of the first two factors
        hidden paths    posterior means over time with 95 % bands, the data beside them
        on nodes        what is expected of each item along a continuous latent, and a histogram of
                        its posterior means; of two dims those means as points
        ==============  ========================================================================

        Models of the user's own are drawn in the same way, whatever their sites are called.

        Args:
            errors: Whether to draw confidence bands.

        Raises:
            ValueError: If the model has nothing that could be drawn.

        Reference: Okabe & Ito (2008), *Color universal design* (the colours).

        Example:
            >>> from ember.inference import EM
            >>> from ember.models import poisson_mixture
            >>> visits = torch.tensor([0.0, 1, 2, 9, 11])
            >>> fit = EM(poisson_mixture, seed=0).fit(visits, components=2)
            >>> fit.plot().savefig("counts.png")  # doctest: +SKIP
        """
        from ember.inference.reports.drawing.figure import draw_fit

        sure = self._warned_uncertainty() if errors else None
        with sheltered(data=self._data), torch.no_grad():
            return draw_fit(self, sure)

    def residuals(self, seed: int = 0) -> Any:
        r"""Quantile residuals of single numbers: standard normal where the model is right.

        .. math:: r_n = \Phi^{-1}(F_n(y_n))

        with the distribution function :math:`F_n` at the estimates, discrete latents summed out;
        of one normal regression the residual over its standard deviation. Effects of groups are
        taken at their posterior means. Whole numbers are spread out at random within their steps.

        Args:
            seed: For the spreading of whole numbers.

        Returns:
            A tensor ``(N,)``, NaN where data are missing; a dict of them if there are several
            sites.

        Raises:
            ValueError: If no site has single numbers with a known distribution function.

        Reference: Dunn & Smyth (1996), *Randomized quantile residuals*, Journal of Computational
        and Graphical Statistics 5, 236-244.

        Example:
            >>> from ember.inference import EM
            >>> from ember.models import regression_mixture
            >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
            >>> y = torch.tensor([0.1, 1.2, 1.8, 3.1, 4.2, 4.8])
            >>> fit = EM(regression_mixture, objective="mle").fit(y, x, components=1)
            >>> [round(value, 2) for value in fit.residuals().tolist()]
            [-0.12, 0.72, -1.57, 0.53, 1.37, -0.93]
        """
        from ember.inference.reports.residuals import residuals_of

        with sheltered(data=self._data), torch.no_grad():
            found = {each.site: each.values for each in residuals_of(self, seed)}
        return next(iter(found.values())) if len(found) == 1 else found

    def plot_residuals(self, seed: int = 0) -> Figure:
        """Residuals against what is expected, and in order against normal quantiles.

        The grey band holds 95 % of each sorted residual if the model is right. Of yes and no the
        first panel is the calibration: the share of yes among rows of like expected probability.

        Args:
            seed: For the spreading of whole numbers; see ``residuals``.

        Raises:
            ValueError: As ``residuals``.
        """
        from ember.inference.reports.drawing.residuals import draw_residuals
        from ember.inference.reports.residuals import residuals_of

        with sheltered(data=self._data), torch.no_grad():
            return draw_residuals(residuals_of(self, seed))

    def plot_starts(self) -> Figure:
        """A picture of the way of every start: local optima, and how many starts found the best.

        Raises:
            ValueError: If there was one start only.
        """
        from ember.inference.reports.drawing.starts import draw_starts

        return draw_starts(self.starts)

    def argument_names(self) -> list[str]:
        """The names of the model's arguments in their order, as far as they can be known."""
        return argument_names(self._model)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The labels behind the codes 0, 1, ... of each column of words, by column."""
        return self.recipe.by_column

    def with_names(
        self, args: Sequence[object], kwargs: Mapping[str, object], recipe: Recipe | None = None
    ) -> Self:
        """The same fit, knowing the names of columns in the arguments as the user gave them."""
        named = [*zip(self.argument_names(), args, strict=False), *kwargs.items()]
        columns = naming.column_names(self.plan, dict(named))
        axes = naming.axis_labels(self.plan, dict(named), columns)
        axes |= latent_axes(self.plan, dict(named))
        recipe = self.recipe if recipe is None else recipe
        return dataclasses.replace(self, columns=columns, axes=axes, recipe=recipe)

    def __str__(self) -> str:
        return summary.text(self)

    __repr__ = __str__
