"""The result that an analyst holds: estimates, how they were reached, what follows from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import Arguments, Model
from ember.inference.inputs.options import check_count
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.run import Run
from ember.inference.plan.plan import Plan
from ember.inference.queries import criteria, forecasting, imputation, prediction, relabelling
from ember.inference.queries.conjugate.posterior import conjugate_posterior
from ember.inference.queries.deterministic import deterministic_values
from ember.inference.queries.gaussian.posterior import (
    gaussian_posterior,
    lag_covariances,
    pair_covariances,
)
from ember.inference.queries.gaussian.predictive import predictive
from ember.inference.queries.impossible import warn_if_impossible
from ember.inference.queries.new_data import argument_names, plan_beside, plan_for
from ember.inference.queries.on_nodes import NodePosterior, values_of_nodes
from ember.inference.reports import naming, summary
from ember.inference.reports.drawing.figure import draw_fit
from ember.inference.storage.fit_file import read_fit, write_fit

__all__ = ["Fit"]


@dataclass(frozen=True, eq=False)
class Fit(Run):
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
        guide: For SVI the learnt guide, callable like any; None for EM.
        columns: The names of columns, where the data came with them, by observed site and by
            argument of the model.
        axes: The same by parameter site and axis; see ``reports/naming.py``.
        node_gaps: For each continuous latent, how far the integrals over its even and over its odd
            nodes differ in the log evidence of a row, at most. Up to about 0.1, the error of the
            integral is the square of that over 400, or less.
    """

    guide: Any = field(default=None, repr=False)
    seconds: float = math.nan
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    axes: dict[str, dict[int, tuple[str, ...]]] = field(default_factory=dict, repr=False)
    node_gaps: dict[str, float] = field(default_factory=dict, repr=False)

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
            the weight of each in ``probs`` ``(N, Q)``.

        Warns:
            RuntimeWarning: If data have probability zero at the estimates.

        Raises:
            ValueError: If no latent site has this name.
        """
        with sheltered(data=(self._data, args)):
            plan, params = self._for_latents(args, kwargs)
            continuous = gaussian_posterior(plan, params, name)
            found = continuous or conjugate_posterior(plan, params, name)
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
            return draws

    @property
    def _data(self) -> Arguments:
        return self.plan.structure.arguments

    def plan_for(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Plan:
        """The plan for other data, the remaining arguments as in the fit."""
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
            params = relabelling.renumbered(self.plan, self.params, order, latent)
        return dataclasses.replace(self, params=params)

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | Path, *, data: bool = True) -> None:
        """Writes the fit into one file, from which ``Fit.load`` brings it back.

        The file is in the safetensors format: tensors, and JSON beside them; nothing in it is ever
        executed. The model is not in it. With its data the fit comes back as it is.

        Args:
            path: The file; one that is there is replaced.
            data: False leaves out the data, and with them what cannot be stored: estimates,
                history and report remain, new data can be asked about, and ``Fit.load`` takes the
                old ones again.

        Warns:
            RuntimeWarning: If an SVI fit has a guide of the user's own, which is not saved.

        Raises:
            ValueError: If the file cannot be written, or an argument of the model cannot be stored.

        Example:
            >>> import tempfile
            >>> from ember.inference import EM, Fit
            >>> from ember.models import poisson_mixture
            >>> visits = torch.tensor([0.0, 1, 2, 9, 11])
            >>> fit = EM(poisson_mixture, seed=0).fit(visits, components=2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     fit.save(f"{folder}/visits.ember")
            ...     again = Fit.load(f"{folder}/visits.ember", poisson_mixture)
            >>> again.predict(torch.tensor([3.0, 8.0])).tolist()
            [0, 1]
        """
        write_fit(self, path, data)

    @staticmethod
    def load(path: str | Path, model: Model, *args: object, **kwargs: object) -> Fit:
        """The fit in a file, with the model that was fitted.

        Args:
            path: A file that ``save`` wrote.
            model: The model; its sites, their shapes and the densities must be those of the fit.
            *args: The model's arguments, for those that were left out of the file.
            **kwargs: The model's keyword arguments, likewise.

        Raises:
            ValueError: If the file is no fit, is damaged, has been changed or is of another
                version; or if the model is another one.
        """
        return Fit(**read_fit(path, model, args, kwargs))

    # -- tables -------------------------------------------------------------------------------

    def summary(self) -> pd.DataFrame:
        """One row for every parameter entry, then for those that ``pyro.deterministic`` computes.

        The column ``estimate`` holds the values; where the data came with names, ``column`` holds
        the name of the data's column that an entry belongs to (empty where there is none).
        """
        return summary.summary(self.params, self.deterministic, self.axes)

    def plot(self) -> Figure:
        """A picture of the data with what was fitted to them.

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
        with sheltered(data=self._data), torch.no_grad():
            return draw_fit(self)

    def argument_names(self) -> list[str]:
        """The names of the model's arguments in their order, as far as they can be known."""
        return argument_names(self.plan.structure.model)

    def with_names(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Self:
        """The same fit, knowing the names of columns in the arguments as the user gave them."""
        named = [*zip(self.argument_names(), args, strict=False), *kwargs.items()]
        columns = naming.column_names(self.plan, dict(named))
        axes = naming.axis_labels(self.plan, dict(named), columns)
        return dataclasses.replace(self, columns=columns, axes=axes)

    def __str__(self) -> str:
        return summary.text(self)

    __repr__ = __str__


def _fresh(seed: int | None) -> int:
    """The seed, or a new one at each call from torch's global random state."""
    return int(torch.randint(2**31, ())) if seed is None else seed
