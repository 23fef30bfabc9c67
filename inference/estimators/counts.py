"""Mixtures of counts and answers: scikit-learn has none of these."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import scipy.special
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils._param_validation import Integral, Interval, Real, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ember.inference.em import EM
from ember.inference.estimators.fitting import (
    Array,
    fitted,
    model_named,
    seed_of,
    without_idle_rows,
)

__all__ = ["BernoulliMixture", "LatentClass", "PoissonMixture"]


class _Mixture(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A mixture whose columns are independent within a component.

    As scikit-learn's own estimators of discrete data do, they round fractions down.
    """

    model: ClassVar[str]
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "objective": [StrOptions({"map", "mle"})],
        "prior": [dict, None],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        objective: str = "map",
        prior: Mapping[str, object] | None = None,
        tol: float = 1e-8,
        max_iter: int = 1000,
        n_init: int = 1,
        random_state: object = None,
    ) -> None:
        self.n_components, self.objective, self.prior = n_components, objective, prior
        self.tol, self.max_iter, self.n_init = tol, max_iter, n_init
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.positive_only = True
        return tags

    def fit(self, X: object, y: object = None, sample_weight: object = None) -> Self:
        """Fits the mixture to rows ``(N, D)``, of which entries may be missing (NaN).

        Args:
            X: The rows.
            y: Ignored.
            sample_weight: How many times each row counts; once unless given.
        """
        self._validate_params()
        rows = self._checked(
            validate_data(
                self, X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan",
                ensure_min_samples=2,
            )
        )  # fmt: skip
        kept, weights = without_idle_rows(rows, sample_weight)
        method = EM(
            model_named(self.model), self.objective, restarts=self.n_init, tol=self.tol,
            max_iter=self.max_iter, seed=seed_of(self.random_state),
        )  # fmt: skip
        data, options = torch.from_numpy(kept.astype(np.float64)), self._options(rows)
        fit = fitted(
            lambda: method.fit(
                data, components=self.n_components, prior=self.prior, frequency=weights, **options
            )
        )
        self.weights_ = fit.params["weights"].cpu().numpy()
        self._take({name: value.cpu().numpy() for name, value in fit.params.items()})
        self.lower_bound_ = fit.log_likelihood / float(fit.n_observations)
        self.n_iter_, self.converged_ = fit.iterations, fit.converged
        self.stop_reason_ = fit.stop_reason
        self._free = fit.n_parameters
        return self

    def fit_predict(self, X: object, y: object = None, sample_weight: object = None) -> Array:
        """Fits, and returns the most probable component of each row."""
        labels: Array = self.fit(X, y, sample_weight).predict(X)
        return labels

    def predict(self, X: object) -> Array:
        """The most probable component of each row."""
        labels: Array = self._weighted(X).argmax(axis=1)
        return labels

    def predict_proba(self, X: object) -> Array:
        """The probability of each component for each row, ``(N, K)``."""
        probs: Array = scipy.special.softmax(self._weighted(X), axis=1)
        return probs

    def score_samples(self, X: object) -> Array:
        """The log probability of each row's observed entries."""
        scores: Array = scipy.special.logsumexp(self._weighted(X), axis=1)
        return scores

    def score(self, X: object, y: object = None) -> float:
        """The mean log probability of a row."""
        return float(self.score_samples(X).mean())

    def bic(self, X: object) -> float:
        """Schwarz's criterion on the rows; smaller is better."""
        scores = self.score_samples(X)
        return float(-2.0 * scores.sum() + self._free * np.log(len(scores)))

    def aic(self, X: object) -> float:
        """Akaike's criterion on the rows; smaller is better."""
        return float(-2.0 * self.score_samples(X).sum() + 2.0 * self._free)

    def _weighted(self, X: object) -> Array:
        """``log p(row, component)``, ``(N, K)``; missing entries drop out."""
        check_is_fitted(self)
        rows = self._checked(
            validate_data(
                self, X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", reset=False
            )
        )
        with np.errstate(divide="ignore"):
            logs: Array = self._log_prob(rows) + np.log(self.weights_)
        return logs

    def _options(self, rows: Array) -> dict[str, Any]:
        """What else the model takes."""
        return {}

    @abstractmethod
    def _checked(self, rows: Array) -> Array:
        """The rows, if they are such as the model describes.

        Raises:
            ValueError: Else.
        """

    @abstractmethod
    def _take(self, params: Mapping[str, Array]) -> None:
        """Keeps the estimates under the names of scikit-learn's kind."""

    @abstractmethod
    def _log_prob(self, rows: Array) -> Array:
        """Log probabilities of rows given components, ``(N, K)``."""


class BernoulliMixture(_Mixture):
    """Latent classes for rows of yes and no: ``ember.models.bernoulli_mixture``.

    Args:
        n_components: The number of components.
        binarize: What lies above is a one, else a zero; None where data are these already.
        objective: "map" or "mle".
        prior: Hyperparameters that replace the default ones.
        tol: Tolerance on what is still to gain, relative to the objective.
        max_iter: The largest number of iterations.
        n_init: How many starts to make.
        random_state: Makes the fit repeatable.

    Attributes:
        weights_: ``(K,)``.
        probs_: The probability of a one in each column, ``(K, D)``.

    Example:
        >>> import numpy as np
        >>> from ember.inference.estimators import BernoulliMixture
        >>> x = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1], [0, 1, 1]])
        >>> BernoulliMixture(2, random_state=0).fit(x).predict(x).tolist()
        [1, 1, 0, 0, 0]
    """

    model: ClassVar[str] = "bernoulli_mixture"
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **_Mixture._parameter_constraints,
        "binarize": [Real, None],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        binarize: float | None = 0.0,
        objective: str = "map",
        prior: Mapping[str, object] | None = None,
        tol: float = 1e-8,
        max_iter: int = 1000,
        n_init: int = 1,
        random_state: object = None,
    ) -> None:
        super().__init__(
            n_components, objective=objective, prior=prior, tol=tol, max_iter=max_iter,
            n_init=n_init, random_state=random_state,
        )  # fmt: skip
        self.binarize = binarize

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = False
        return tags

    def _checked(self, rows: Array) -> Array:
        if self.binarize is not None:
            ones = (rows > self.binarize).astype(rows.dtype)
            return np.where(np.isnan(rows), np.nan, ones)
        if not np.isin(rows[~np.isnan(rows)], (0.0, 1.0)).all():
            raise ValueError("X holds other values than 0 and 1; give a threshold, binarize=...")
        return rows

    def _take(self, params: Mapping[str, Array]) -> None:
        self.probs_ = params["probs"]

    def _log_prob(self, rows: Array) -> Array:
        ones, seen = np.nan_to_num(rows), ~np.isnan(rows)
        found: Array = scipy.special.xlogy(ones[:, None], self.probs_).sum(-1)
        found += scipy.special.xlogy((seen * (1.0 - ones))[:, None], 1.0 - self.probs_).sum(-1)
        return found


class PoissonMixture(_Mixture):
    """A mixture of Poisson counts: ``ember.models.poisson_mixture``.

    Args:
        n_components: The number of components.
        objective: "map" or "mle".
        prior: Hyperparameters that replace the default ones.
        tol: Tolerance on what is still to gain, relative to the objective.
        max_iter: The largest number of iterations.
        n_init: How many starts to make.
        random_state: Makes the fit repeatable.

    Attributes:
        weights_: ``(K,)``.
        rates_: ``(K, D)``.

    Example:
        >>> import numpy as np
        >>> from ember.inference.estimators import PoissonMixture
        >>> x = np.array([[0], [1], [2], [9], [12]])
        >>> PoissonMixture(2, random_state=0).fit(x).rates_.round(1).tolist()
        [[1.1], [9.2]]
    """

    model: ClassVar[str] = "poisson_mixture"

    def _checked(self, rows: Array) -> Array:
        if (rows < 0.0).any():
            raise ValueError("Negative values in data: X must hold counts.")
        return np.floor(rows)

    def _take(self, params: Mapping[str, Array]) -> None:
        self.rates_ = params["rates"].reshape(self.n_components, -1)

    def _log_prob(self, rows: Array) -> Array:
        counts, seen = np.nan_to_num(rows)[:, None], ~np.isnan(rows)
        each = scipy.special.xlogy(counts, self.rates_) - seen[:, None] * self.rates_
        found: Array = (each - scipy.special.gammaln(counts + 1.0)).sum(-1)
        return found


class LatentClass(_Mixture):
    """Latent classes for items with several levels each: ``ember.models.categorical_mixture``.

    Args:
        n_components: The number of classes.
        levels: The number of levels of all items; one more than the highest code unless given.
        objective: "map" or "mle".
        prior: Hyperparameters that replace the default ones.
        tol: Tolerance on what is still to gain, relative to the objective.
        max_iter: The largest number of iterations.
        n_init: How many starts to make.
        random_state: Makes the fit repeatable.

    Attributes:
        weights_: ``(K,)``.
        probs_: The probability of each level of each item, ``(K, J, L)``.

    Example:
        >>> import numpy as np
        >>> from ember.inference.estimators import LatentClass
        >>> x = np.array([[0, 2], [0, 2], [1, 0], [1, 0], [1, 1]])
        >>> LatentClass(2, random_state=0).fit(x).predict(x).tolist()
        [1, 1, 0, 0, 0]
    """

    model: ClassVar[str] = "categorical_mixture"
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **_Mixture._parameter_constraints,
        "levels": [Interval(Integral, 2, None, closed="left"), None],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        levels: int | None = None,
        objective: str = "map",
        prior: Mapping[str, object] | None = None,
        tol: float = 1e-8,
        max_iter: int = 1000,
        n_init: int = 1,
        random_state: object = None,
    ) -> None:
        super().__init__(
            n_components, objective=objective, prior=prior, tol=tol, max_iter=max_iter,
            n_init=n_init, random_state=random_state,
        )  # fmt: skip
        self.levels = levels

    def _options(self, rows: Array) -> dict[str, Any]:
        highest = int(np.nanmax(rows)) if not np.isnan(rows).all() else 0
        return {"levels": self.levels or max(highest + 1, 2)}

    def _checked(self, rows: Array) -> Array:
        if (rows < 0.0).any():
            raise ValueError("Negative values in data: X must hold codes of levels, 0, 1, ...")
        codes = np.floor(rows)
        if hasattr(self, "probs_") and (codes >= self.probs_.shape[-1]).any():
            raise ValueError(f"X holds codes above {self.probs_.shape[-1] - 1}, the highest known.")
        return codes

    def fit(self, X: object, y: object = None, sample_weight: object = None) -> Self:
        """Fits the classes to codes ``(N, J)``; see ``BernoulliMixture``."""
        if hasattr(self, "probs_"):
            del self.probs_  # its levels are those of other data
        return super().fit(X, y, sample_weight)

    def _take(self, params: Mapping[str, Array]) -> None:
        self.probs_ = params["probs"]

    def _log_prob(self, rows: Array) -> Array:
        codes, items = np.nan_to_num(rows).astype(int), np.arange(rows.shape[1])
        logs = np.log(self.probs_)[:, items, codes]  # (K, N, J)
        found: Array = np.where(np.isnan(rows), 0.0, logs).sum(-1).T
        return found
