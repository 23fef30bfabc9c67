"""The result that an analyst holds: estimates, how they were reached, what follows from them."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pandas as pd
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.exports import Exports
from ember.inference.inputs.arguments import Arguments, Model
from ember.inference.inputs.frames import Recipe, take_again
from ember.inference.inputs.options import check_count
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.run import Run
from ember.inference.plan.plan import Plan
from ember.inference.queries import criteria, forecasting, imputation, prediction, relabelling
from ember.inference.queries.conjugate.posterior import conjugate_posterior
from ember.inference.queries.deterministic import deterministic_values
from ember.inference.queries.gaussian.posterior import (
    GaussianPosterior,
    gaussian_posterior,
    lag_covariances,
    pair_covariances,
)
from ember.inference.queries.gaussian.predictive import predictive
from ember.inference.queries.impossible import warn_if_impossible
from ember.inference.queries.new_data import (
    argument_names,
    in_their_places,
    plan_beside,
    plan_for,
)
from ember.inference.queries.on_nodes import NodePosterior, values_of_nodes
from ember.inference.queries.uncertainty.drawn import DrawnUncertainty
from ember.inference.queries.uncertainty.intervals import Interval, check_level
from ember.inference.queries.uncertainty.uncertainty import Uncertainty
from ember.inference.queries.units import UnitPosterior, unit_posterior
from ember.inference.reports import naming, summary
from ember.inference.reports.drawing.figure import draw_fit
from ember.inference.reports.drawing.residuals import draw_residuals
from ember.inference.reports.drawing.starts import draw_starts
from ember.inference.reports.latent_names import latent_axes
from ember.inference.reports.residuals import residuals_of

__all__ = ["Fit"]


DRAWS = 2000  # from a posterior of the parameters, for errors and intervals


@dataclass(frozen=True, eq=False)
class Fit(Exports):
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

    # -- what follows from it -------------------------------------------------------------------

    @property
    def deterministic(self) -> dict[str, Tensor]:
        """Values of the model's ``pyro.deterministic`` statements at the estimates, by name.

        Those that depend on a latent site are left out: they differ from state to state.
        """
        with sheltered(data=self._data):
            return deterministic_values(self.plan.structure, self.params)

    def posterior(self, name: str, *args: object, **kwargs: object) -> Any:
        """Posterior of a latent site given the data and the estimates.

        Args:
            name: The latent site; for a site written step by step, its name without the step
                number gives all steps (smoothed marginals, ``(..., T, K)``).
            *args: New data, as the model takes it; none for the data of the fit.
            **kwargs: Keyword arguments of the model to change.

        Returns:
            Of a discrete latent a ``Categorical`` with ``probs`` of shape ``(N, K)``; NaN for
            impossible data. Of a continuous latent an object with ``mean``, ``variance`` and
            ``stddev`` in the shape of the latent: of a Gaussian one a ``GaussianPosterior``, with
            ``covariance`` of each event, ``joint()`` for that of all entries and ``distribution``;
            of one with a conjugate prior a ``ConjugatePosterior``, with ``distribution``; of one on
            nodes a ``NodePosterior``, with ``covariance`` of each event, the ``nodes`` ``(Q,)`` and
            the weight of each in ``probs`` ``(N, Q)``; of one that is integrated unit by unit a
            ``UnitPosterior``, whose ``nodes`` ``(G, Q)`` are those of each unit.

        Warns:
            RuntimeWarning: If data have probability zero at the estimates.

        Raises:
            ValueError: If no latent site has this name.
        """
        with sheltered(data=(self._data, args)):
            plan, params = self._for_latents(args, kwargs)
            continuous = gaussian_posterior(plan, params, name)
            found = (
                continuous
                or conjugate_posterior(plan, params, name)
                or unit_posterior(plan, params, name)
            )
            if isinstance(found, (GaussianPosterior, UnitPosterior)):
                found = dataclasses.replace(found, axes=self.axes.get(name, {}))
            if found is not None:
                warn_if_impossible(plan, params, found.mean)
                return found
            probs = prediction.posterior(plan, params, name)
            warn_if_impossible(plan, params, probs)
            if name in plan.on_nodes:
                return NodePosterior(values_of_nodes(plan, params, name), probs)
            valid = False if probs.isnan().any() else None
            return dist.Categorical(probs=probs, validate_args=valid)

    def posterior_pairs(
        self, name: str | tuple[str, str], *args: object, **kwargs: object
    ) -> Tensor:
        """Posterior of each two neighbouring states of a chain given the data and the estimates.

        Args:
            name: The latent site; or two Gaussian latents, for all covariances between them.
            *args: New data, as the model takes it; none for the data of the fit.
            **kwargs: Keyword arguments of the model to change.

        Returns:
            ``p(z_t = i, z_(t+1) = j | data)``, shape ``(*plates, T - 1, K, K)``; NaN for
            impossible data. Of a chain of Gaussian latents the covariances of ``z_t`` with
            ``z_(t+1)``, shape ``(*plates, T - 1, D, D)``, with ``D`` of 1 for numbers. Of two
            Gaussian latents ``(*shape of one, *shape of the other)``.

        Warns:
            RuntimeWarning: If data have probability zero at the estimates.

        Raises:
            ValueError: If the site is not the state of a chain.
        """
        with sheltered(data=(self._data, args)):
            plan, params = self._for_latents(args, kwargs)
            if isinstance(name, tuple):
                return pair_covariances(plan, params, name)
            pairs = lag_covariances(plan, params, name)
            if pairs is None:
                pairs = forecasting.posterior_pairs(plan, params, name)
            warn_if_impossible(plan, params, pairs)
            return pairs

    def forecast(self, name: str, *args: object, **kwargs: object) -> Any:
        r"""One-step-ahead distributions of a chain: of its state, or of its data.

        Entry ``t`` is the distribution of step ``t`` given all data before it; the last entry is
        that of the step after the data:

        .. math:: p(z_t \mid x_{1:t-1}), \quad
                  p(x_t \mid x_{1:t-1}) = \sum_k p(z_t = k \mid x_{1:t-1}) \, p(x_t \mid z_t = k).

        The log densities of the data under it add up to the log likelihood of a sequence.

        Args:
            name: The latent site (for its states) or the observed one (for its data).
            *args: New data, as the model takes it; none for the data of the fit.
            **kwargs: Keyword arguments of the model to change.

        Returns:
            A ``Categorical`` over the states, or a ``MixtureSameFamily`` of the emissions; batch
            shape ``(*plates, T + 1)``. After data of probability zero it is NaN.

        Warns:
            RuntimeWarning: If data have probability zero at the estimates; and if the chain's
                moves vary in time. The one past the data is not known, and the last entry repeats
                the last move; for its own, pass data with one more step, which is missing (NaN),
                and read the last entry but one.

        Raises:
            ValueError: If the site belongs to no chain, or its emissions vary in time.
        """
        with sheltered(data=(self._data, args)):
            plan = self.plan_for(args, kwargs)
            ahead = forecasting.forecast(plan, self.params, name)
            states = ahead if isinstance(ahead, dist.Categorical) else ahead.mixture_distribution
            warn_if_impossible(plan, self.params, states.probs)
            return ahead

    def predict(self, *args: object, **kwargs: object) -> Any:
        """The most probable joint value of the latent sites (for a chain: the Viterbi path).

        A continuous latent gets its posterior mean, discrete latents averaged over; of a grouping
        factor's level without data that is the prior mean. A discrete latent beside one on nodes
        has the value that is most probable by itself. For the data that follow from Gaussian
        latents see ``predictive``.

        Args:
            *args: New data, as the model takes it; none for the data of the fit.
            **kwargs: Keyword arguments of the model to change.

        Returns:
            A tensor of values, ``(N,)`` for a mixture; a dict of them if there are several
            latent sites. For data of probability zero there is no most probable value: NaN
            stands there, or -1 if the values are whole numbers.

        Warns:
            RuntimeWarning: If data have probability zero at the estimates.
        """
        with sheltered(data=(self._data, args)):
            plan, params = self._for_latents(args, kwargs)
            values = prediction.predict(plan, params)
            warn_if_impossible(plan, params, values)
            return values

    def predictive(self, *args: object, **kwargs: object) -> Any:
        r"""The distribution of data that read Gaussian latents: fitted values, and predictions.

        Without arguments it is that of the data of the fit: the mean holds the fitted values. New
        rows are set *beside* those of the fit, which tell what is known of the latents. So a level
        of a grouping factor keeps its estimated effect (the BLUP), a new level has its prior, and
        rows that continue a series are forecasts. The estimates are taken as known, as everywhere.

        .. math:: p(y_{\text{new}} \mid y) = \int p(y_{\text{new}} \mid z) \, p(z \mid y) \, dz

        Args:
            *args: New rows, as the model takes its data: what has rows continues the rows of the
                fit. Data that are not known are NaN, or left out: ``predictive(groups=...)``.
            **kwargs: Keyword arguments of the model, those of rows for the new rows.

        Returns:
            A ``Normal`` (or ``MultivariateNormal``) with the batch shape of the new rows, beside
            discrete latents a ``MixtureSameFamily``: ``.mean``, ``.variance``, ``.sample()``. A
            dict of them by site name if several sites read Gaussian latents.

        Raises:
            ValueError: If no observed site reads a Gaussian latent, or the arguments have no rows.

        Reference: Robinson (1991), *That BLUP is a good thing: the estimation of random effects*,
        Statistical Science 6, 15-32.

        Example:
            >>> from ember.inference import EM
            >>> from ember.models import linear_mixed_model
            >>> y = torch.tensor([1.0, 1.2, 0.8, 3.1, 3.0, 2.9, 2.3, 2.2, 1.9])
            >>> group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
            >>> fit = EM(linear_mixed_model, objective="mle").fit(y, groups=group)
            >>> new = fit.predictive(groups=torch.tensor([0, 1, 3]))  # the last group is new
            >>> [round(value, 3) for value in new.mean.tolist()]
            [1.016, 2.985, 2.044]
            >>> [round(value, 3) for value in new.stddev.tolist()]
            [0.203, 0.203, 0.831]
        """
        with sheltered(data=(self._data, args)), torch.no_grad():
            if not args and not kwargs:
                return predictive(self.plan, self.params)
            args, kwargs = take_again(self._model, self.recipe, args, kwargs, True)
            plan, rows = plan_beside(self.plan, self.params, args, kwargs)
            return predictive(plan, self.params, rows)

    def log_prob(self, *args: object, **kwargs: object) -> Tensor:
        """Log likelihood of each row, ``(N,)``, latents integrated out, weights left aside.

        Rows are those of the innermost plate that all data have in common; a model without such a
        plate gives one number. What stands outside that plate, such as a ``pyro.factor`` on
        parameters, belongs to no row: it counts in ``fit.log_likelihood`` alone.
        """
        with sheltered(data=(self._data, args)), torch.no_grad():
            return LogEvidence.of(self.plan_for(args, kwargs)).rows(self.params)

    def impute(
        self, *args: object, draws: int | None = None, seed: int | None = None, **kwargs: object
    ) -> Any:
        """The data with their missing entries (NaN) filled in, given the observed ones of the row.

        The latents are integrated out and the parameters are the estimates, whose own uncertainty
        is left aside. Without ``draws`` an entry gets its conditional mean, which is right for a
        best guess but makes imputed data vary too little; a category gets its most probable
        value. With ``draws`` it gets draws from its exact conditional distribution, joint over
        the missing entries of a row.

        Args:
            *args: New data, as the model takes it; none for the data of the fit.
            draws: How many filled-in copies to draw, along a new leading dim.
            seed: Makes the draws repeatable; torch's global random state governs them otherwise.
            **kwargs: Keyword arguments of the model to change.

        Returns:
            A tensor like the data; a dict by site name if the model has several observed sites.
            Entries that are missing from data of probability zero stay missing.

        Warns:
            RuntimeWarning: If data have probability zero at the estimates.

        Raises:
            ValueError: If ``draws`` is below 1, or a distribution has no mean to impute.

        Example:
            >>> from ember.inference import EM
            >>> from ember.models import gaussian_mixture
            >>> x = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.5], [3.0, 7.0], [4.0, torch.nan]])
            >>> fit = EM(gaussian_mixture, objective="mle").fit(x, components=1)
            >>> [round(value, 3) for value in fit.impute()[4].tolist()]
            [4.0, 9.25]
            >>> fit.impute(draws=20, seed=0).shape
            torch.Size([20, 5, 2])
        """
        if draws is not None:
            check_count("draws", draws)
        with sheltered(_fresh(seed) if draws else seed, (self._data, args)):
            plan = self.plan_for(args, kwargs)
            filled = imputation.impute(plan, self.params, draws)
            warn_if_impossible(plan, self.params, filled)
            return filled

    def sample(self, n: int, seed: int | None = None) -> dict[str, Tensor]:
        """Draws ``n`` rows of all latent and observed sites from the fitted model.

        Without a ``seed`` each call gives new draws, governed by torch's global random state.

        A model without a plate of rows, such as a single chain, gives ``n`` whole data sets.
        """
        with sheltered(_fresh(seed), self._data):
            return prediction.sample(self.plan, self.params, n)

    def latent_samples(
        self, n: int, *args: object, seed: int | None = None, **kwargs: object
    ) -> dict[str, Tensor]:
        """Draws ``n`` joint values of all latents from their posterior given data and estimates.

        Args:
            n: The number of draws.
            *args: New data, as the model takes it; none for the data of the fit.
            seed: Makes the draws repeatable; torch's global random state governs them otherwise.
            **kwargs: Keyword arguments of the model to change.

        Returns:
            Latent site to ``(n, *shape)``; steps of a sequence lie along one dim.

        Raises:
            ValueError: If the model has no latent sites.

        Example:
            >>> from ember.inference import EM
            >>> from ember.models import local_level
            >>> fit = EM(local_level).fit(torch.tensor([1.0, 1.4, 0.9, 2.0, 2.2, 2.1]))
            >>> fit.latent_samples(100, seed=0)["level"].shape
            torch.Size([100, 6])
        """
        check_count("n", n)
        with sheltered(_fresh(seed), (self._data, args)):
            plan, params = self._for_latents(args, kwargs)
            return prediction.latent_samples(plan, params, n)

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
        with sheltered(_fresh(seed), self._data):
            draws: dict[str, Tensor] = self.guide.draw(n)
            for latent, order in self.renumbered:
                draws = relabelling.permute(self.plan, draws, latent, order, lead=1)
            return draws

    @property
    def _data(self) -> Arguments:
        return self.plan.structure.arguments

    def plan_for(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Plan:
        """The plan for other data, the remaining arguments as in the fit."""
        model, old = self._model, self._data
        args, kwargs = take_again(model, self.recipe, args, kwargs)
        args, kwargs = in_their_places(argument_names(model), old, args, kwargs)
        return plan_for(self.plan, self.params, args, kwargs)

    def _for_latents(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Plan, Mapping[str, Tensor]]:
        """The plan for other data, and the parameters, given which latents are asked for."""
        return self.plan_for(args, kwargs), self.params

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

    # -- how sure it is -----------------------------------------------------------------------

    def standard_errors(self, robust: bool = False) -> dict[str, Tensor]:
        r"""The standard error of every estimate, without bootstrap.

        .. math:: \operatorname{Cov} \hat\theta \approx J \Big(-\nabla_u^2 \log p(x, \hat\theta)
                  \Big)^{-1} J^\top

        with the observed information in unconstrained coordinates :math:`u` (for MAP of the log
        posterior, as a density in the space in which the model declares it) and the Jacobian
        :math:`J` of the map to the parameters. It takes two E-steps for each free parameter, once
        for a fit. Where the method has found a posterior of the parameters (``VBEM``, ``NUTS``,
        ``Laplace``, ``SVI`` with a normal guide), it is that of the draws.

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
            ValueError: If the objective has no maximum there, the model has no parameters, or rows
                are not independent (``robust``).

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
        with sheltered(data=self._data), torch.no_grad():
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
        with sheltered(data=self._data), torch.no_grad():
            lower, upper = map(found.by_site, found.intervals(level, robust))
        return {name: Interval(lower[name], upper[name]) for name in lower}

    def vcov(self, robust: bool = False) -> pd.DataFrame:
        """The covariance of all estimates, labelled as in ``summary()``; see ``standard_errors``.

        It is singular where entries determine each other, as those of a simplex do.
        """
        found = self._warned_uncertainty()
        with sheltered(data=self._data), torch.no_grad():
            labels = found.labels
            return pd.DataFrame(found.vcov(robust).numpy(), index=labels, columns=labels)

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
        with sheltered(_fresh(seed), self._data), torch.no_grad():
            return found.draws(n)

    @property
    def has_posterior(self) -> bool:
        """Whether the method has found a posterior of the parameters, to draw from."""
        return self.guide is not None and not self.guide.is_delta

    @functools.cached_property
    def _uncertainty(self) -> Uncertainty | DrawnUncertainty:
        if self.has_posterior:
            draws, exact = self._posterior_draws(), self._posterior_deviations()
            with sheltered(0, self._data), torch.no_grad():
                return DrawnUncertainty(self.plan, self.params, draws, exact)
        if self.stop in (StopReason.DEGENERATE, StopReason.UNBOUNDED):
            raise ValueError(
                f"standard errors need a maximum, and this fit has none: {self.stop_reason}"
            )
        if not self.params:
            raise ValueError("the model has no parameters, so there is nothing to be unsure of.")
        with sheltered(data=self._data), torch.no_grad():
            return Uncertainty(self.plan, self.params, self.stop is StopReason.INFINITE)

    def _posterior_draws(self) -> dict[str, Tensor]:
        """The draws by which the spread of a posterior is told."""
        return self.posterior_samples(DRAWS, seed=0)

    def _posterior_deviations(self) -> dict[str, Tensor]:
        """Standard deviations of the posterior that are known without draws."""
        return {}

    def _warned_uncertainty(self) -> Uncertainty | DrawnUncertainty:
        """What is known of the estimates' errors, with a warning if something has none."""
        found = self._uncertainty
        for note in found.notes:
            warnings.warn(f"{self.method}: {note}", RuntimeWarning, stacklevel=3)
        return found

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
        with sheltered(data=self._data), torch.no_grad():
            lower, upper = found.intervals(level, robust)
            return frame.assign(
                **{"std. error": found.standard_errors(robust).numpy()},
                lower=lower.numpy(),
                upper=upper.numpy(),
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
        with sheltered(data=self._data), torch.no_grad():
            return draw_residuals(residuals_of(self, seed))

    def plot_starts(self) -> Figure:
        """A picture of the way of every start: local optima, and how many starts found the best.

        Raises:
            ValueError: If there was one start only.
        """
        return draw_starts(self.starts)

    def argument_names(self) -> list[str]:
        """The names of the model's arguments in their order, as far as they can be known."""
        return argument_names(self._model)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The labels behind the codes 0, 1, ... of each column of words, by column."""
        return self.recipe.by_column

    @property
    def _model(self) -> Model:
        return self.plan.structure.model

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


def _fresh(seed: int | None) -> int:
    """The seed, or a new one at each call from torch's global random state."""
    return int(torch.randint(2**31, ())) if seed is None else seed
