"""What follows from a fit: posteriors of latents, predictions, imputations, draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.exports import Exports
from ember.inference.inputs.arguments import Arguments, Model
from ember.inference.inputs.frames import Recipe, take_again
from ember.inference.inputs.options import check_count
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.plan import Plan
from ember.inference.queries import forecasting, imputation, prediction
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
from ember.inference.queries.units import UnitPosterior, unit_posterior

__all__ = ["Answers", "fresh_seed"]


class Answers(Exports):
    """The part of ``Fit`` that answers questions about latents and data."""

    recipe: Recipe
    axes: dict[str, dict[int, tuple[str, ...]]]

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
            ``stddev`` in the shape of the latent (dims that no plate uses left out): of a Gaussian
            one a ``GaussianPosterior``, with ``covariance`` of each event, ``joint()`` for that of
            all entries and ``distribution``; of one with a conjugate prior a
            ``ConjugatePosterior``, with ``distribution``; of one on nodes a ``NodePosterior``, with
            ``covariance`` of each event, the ``nodes`` ``(Q,)`` and the weight of each in ``probs``
            ``(N, Q)``; of one that is integrated unit by unit a ``UnitPosterior``, whose ``nodes``
            ``(G, Q)`` are those of each unit.

        Warns:
            RuntimeWarning: If data have probability zero at the estimates.

        Raises:
            ValueError: If no latent site has this name.
        """
        with sheltered(data=self._data, beside=args):
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
        with sheltered(data=self._data, beside=args):
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
        with sheltered(data=self._data, beside=args):
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
        with sheltered(data=self._data, beside=args):
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
        with sheltered(data=self._data, beside=args), torch.no_grad():
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
        with sheltered(data=self._data, beside=args), torch.no_grad():
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
        with sheltered(fresh_seed(seed) if draws else seed, self._data, args):
            plan = self.plan_for(args, kwargs)
            filled = imputation.impute(plan, self.params, draws)
            warn_if_impossible(plan, self.params, filled)
            return filled

    def sample(self, n: int, seed: int | None = None) -> dict[str, Tensor]:
        """Draws ``n`` rows of all latent and observed sites from the fitted model.

        Without a ``seed`` each call gives new draws, governed by torch's global random state.

        A model without a plate of rows, such as a single chain, gives ``n`` whole data sets.
        """
        with sheltered(fresh_seed(seed), self._data):
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
        with sheltered(fresh_seed(seed), self._data, args):
            plan, params = self._for_latents(args, kwargs)
            return prediction.latent_samples(plan, params, n)

    @property
    def _model(self) -> Model:
        return self.plan.structure.model

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


def fresh_seed(seed: int | None) -> int:
    """The seed, or a new one at each call from torch's global random state."""
    return int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
