"""Gaussian mixtures in the place of scikit-learn's."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import scipy.special
import scipy.stats
import sklearn.mixture
import torch
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ember.inference.em import EM
from ember.inference.estimators.fitting import (
    Array,
    array,
    fitted,
    given,
    model_named,
    seed_of,
    without_idle_rows,
)
from ember.inference.variational_bayes.variational_bayes import VariationalBayes
from ember.inference.variational_fit import VariationalFit
from ember.inference.vbem import VBEM

__all__ = ["BayesianGaussianMixture", "GaussianMixture"]


SHRUNK = 1e-6  # of its diagonal that keeps a default covariance of too few rows proper
STARTS = {
    "kmeans": "kmeans",
    "k-means++": "kmeans",
    "random": "random",
    "random_from_data": "points",
}


class _Gaps:
    """Rows with missing entries, in fits and in predictions, for both mixtures."""

    reg_covar = 0.0
    verbose_interval = 10

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.allow_nan = True
        return tags

    def _rows(self, X: object, **options: Any) -> Array:
        rows: Array = validate_data(
            self, X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", **options
        )
        return rows

    def _fitted_rows(self, X: object) -> Array:
        check_is_fitted(self)
        return self._rows(X, reset=False)

    def predict(self, X: object) -> Array:
        """The most probable component of each row, which may have missing entries (NaN)."""
        labels: Array = self._estimate_weighted_log_prob(self._fitted_rows(X)).argmax(axis=1)  # type: ignore[attr-defined]
        return labels

    def predict_proba(self, X: object) -> Array:
        """The probability of each component for each row, ``(N, K)``."""
        logs = self._estimate_weighted_log_prob(self._fitted_rows(X))  # type: ignore[attr-defined]
        probs: Array = scipy.special.softmax(logs, axis=1)
        return probs

    def score_samples(self, X: object) -> Array:
        """The log density of each row's observed entries."""
        logs = self._estimate_weighted_log_prob(self._fitted_rows(X))  # type: ignore[attr-defined]
        scores: Array = scipy.special.logsumexp(logs, axis=1)
        return scores

    def fit_predict(self, X: object, y: object = None, sample_weight: object = None) -> Array:
        """Fits, and returns the most probable component of each row."""
        return self.fit(X, y, sample_weight).predict(X)  # type: ignore[attr-defined, no-any-return]

    def _checked_rows(self, X: object) -> Array:
        self._validate_params()  # type: ignore[attr-defined]
        rows = self._rows(X, ensure_min_samples=2)
        if len(rows) < self.n_components:  # type: ignore[attr-defined]
            raise ValueError(
                "Expected n_samples >= n_components "
                f"but got n_components = {self.n_components}, n_samples = {len(rows)}"  # type: ignore[attr-defined]
            )
        return rows

    def _last_fit(self, rows: Array) -> Mapping[str, torch.Tensor]:
        """Where the last fit ended, if it is to be carried on; else nothing.

        Raises:
            ValueError: If it was of another shape.
        """
        if not self.warm_start or not hasattr(self, "converged_"):  # type: ignore[attr-defined]
            return {}
        means: Array = self.means_  # type: ignore[attr-defined]
        if means.shape != (self.n_components, rows.shape[1]):  # type: ignore[attr-defined]
            raise ValueError(
                f"warm_start=True goes on from {means.shape[0]} components of {means.shape[1]} "
                "columns, which the last fit had; set warm_start=False for others."
            )
        return given(weights=self.weights_, locs=means, precisions=self.precisions_)  # type: ignore[attr-defined]

    def _log_prob_with_gaps(self, X: Array) -> Array:
        """Log densities ``(N, K)`` of observed entries, one pattern of gaps after another."""
        out = np.zeros((len(X), self.n_components))  # type: ignore[attr-defined]
        patterns, rows = np.unique(np.isnan(X), axis=0, return_inverse=True)
        covariances = _full(self.covariances_, self.covariance_type, self.means_)  # type: ignore[attr-defined]
        for i, missing in enumerate(patterns):
            own, seen = rows.reshape(-1) == i, ~missing
            if not seen.any():
                continue
            for k, mean in enumerate(self.means_):  # type: ignore[attr-defined]
                density = scipy.stats.multivariate_normal(
                    mean[seen], covariances[k][np.ix_(seen, seen)], allow_singular=True
                )
                out[own, k] = density.logpdf(X[own][:, seen])
        return out


def _full(covariances: Array, covariance_type: str, means: Array) -> Array:
    """Covariance matrices ``(K, D, D)``."""
    count, dim = means.shape
    if covariance_type == "full":
        return covariances
    if covariance_type == "tied":
        return np.broadcast_to(covariances, (count, dim, dim))
    diagonal = covariances if covariance_type == "diag" else covariances[:, None]
    full: Array = np.eye(dim) * np.broadcast_to(diagonal, (count, dim))[:, :, None]
    return full


def _inverted(precisions: Array, covariance_type: str) -> tuple[Array, Array]:
    """Covariances, and the factors of the precisions that scikit-learn predicts with."""
    if covariance_type in ("full", "tied"):
        return np.linalg.inv(precisions), np.linalg.cholesky(precisions)
    return 1.0 / precisions, np.sqrt(precisions)


class GaussianMixture(_Gaps, sklearn.mixture.GaussianMixture):  # type: ignore[misc]
    """``sklearn.mixture.GaussianMixture``, fitted by Ember's EM.

    What differs from its namesake:

    - With ``objective="map"``, the default, weak priors in the units of the data keep components
      from collapsing (``prior`` replaces them, see ``ember.models.gaussian_mixture``); there is
      no ``reg_covar``. With "mle" it is the maximum likelihood estimate itself.
    - ``tol`` is what is still to gain, relative to the objective, and the fit goes on until it is
      next to nothing: 1e-8 and 1000 iterations by default.
    - Missing entries (NaN) drop out of likelihood and predictions. ``sample_weight`` counts rows.
    - Components come in the order of their weights, unless a start is given.
    - ``lower_bound_`` is the mean log likelihood of a row, ``lower_bounds_`` the history of what
      was maximised, by row: with "map" the log prior is in it.

    Args:
        n_components: The number of components.
        covariance_type: "full", "tied", "diag" or "spherical".
        objective: "map" or "mle".
        prior: Hyperparameters that replace the default ones.
        tol: Tolerance on what is still to gain, relative to the objective.
        max_iter: The largest number of iterations.
        n_init: How many starts to make.
        init_params: "kmeans", "k-means++" (the same), "random" or "random_from_data".
        weights_init: Weights to start from.
        means_init: Means to start from.
        precisions_init: Precisions to start from.
        random_state: Makes the fit repeatable.
        warm_start: Whether to start from where the last fit ended.
        verbose: Whether to show a progress bar.

    Attributes:
        weights_: ``(K,)``; ``means_``, ``covariances_`` and ``precisions_`` as the namesake's.
        converged_: Whether nothing was left to gain.
        stop_reason_: Why the fit ended, in words.

    Example:
        >>> import numpy as np
        >>> from ember.inference.estimators import GaussianMixture
        >>> x = np.array([[0.0], [0.2], [0.1], [5.0], [5.3], [5.1]])
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> mixture.predict([[0.3], [4.0]]).tolist(), mixture.means_.round(1).tolist()
        ([1, 0], [[5.1], [0.1]])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **sklearn.mixture.GaussianMixture._parameter_constraints,
        "objective": [StrOptions({"map", "mle"})],
        "prior": [dict, None],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        objective: str = "map",
        prior: Mapping[str, object] | None = None,
        tol: float = 1e-8,
        max_iter: int = 1000,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: object = None,
        means_init: object = None,
        precisions_init: object = None,
        random_state: object = None,
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        self.n_components, self.covariance_type = n_components, covariance_type
        self.objective, self.prior, self.tol, self.max_iter = objective, prior, tol, max_iter
        self.n_init, self.init_params, self.weights_init = n_init, init_params, weights_init
        self.means_init, self.precisions_init = means_init, precisions_init
        self.random_state, self.warm_start, self.verbose = random_state, warm_start, verbose

    def fit(self, X: object, y: object = None, sample_weight: object = None) -> Self:
        """Fits the mixture to rows, of which entries may be missing.

        Args:
            X: ``(N, D)``.
            y: Ignored.
            sample_weight: How many times each row counts; once unless given.
        """
        rows = self._checked_rows(X)
        self._check_parameters(rows, xp=np)
        kept, weights = without_idle_rows(rows, sample_weight)
        method = EM(
            model_named("gaussian_mixture"), self.objective, init=self._start(rows),
            restarts=self.n_init, tol=self.tol, max_iter=max(self.max_iter, 1),
            seed=seed_of(self.random_state), progress=bool(self.verbose),
        )  # fmt: skip
        data, options = torch.from_numpy(kept.astype(np.float64)), {
            "components": self.n_components, "covariance": self.covariance_type,
            "prior": self.prior, "frequency": weights,
        }  # fmt: skip
        if self.max_iter == 0:  # the start itself
            self._take(method.initialise(data, **options), rows)
            self.lower_bound_, self.lower_bounds_ = -np.inf, []
            self.n_iter_, self.converged_, self.stop_reason_ = 0, False, "max_iter=0"
            return self
        fit = fitted(lambda: method.fit(data, **options))
        self._take(fit.params, rows)
        total = float(fit.n_observations)
        self.lower_bound_ = fit.log_likelihood / total
        self.lower_bounds_ = (fit.history / total).tolist()
        self.n_iter_, self.converged_ = fit.iterations, fit.converged
        self.stop_reason_ = fit.stop_reason
        return self

    def _take(self, params: Mapping[str, torch.Tensor], rows: Array) -> None:
        """Keeps estimates under scikit-learn's names."""
        self.weights_ = array(params["weights"], rows)
        self.means_ = array(params["locs"], rows)
        self.precisions_ = array(params["precisions"], rows)
        self.covariances_, self.precisions_cholesky_ = _inverted(
            self.precisions_, self.covariance_type
        )

    def _start(self, rows: Array) -> Any:
        """Where to start: where the last fit ended, at given values, or by a kind."""
        start = self._last_fit(rows) or given(
            weights=self.weights_init, locs=self.means_init, precisions=self.precisions_init
        )
        return start or STARTS[self.init_params]

    def _estimate_log_prob(self, X: Array, xp: Any = None) -> Array:
        if np.isnan(X).any():
            return self._log_prob_with_gaps(X)
        found: Array = super()._estimate_log_prob(X, xp=np)
        return found


class BayesianGaussianMixture(_Gaps, sklearn.mixture.BayesianGaussianMixture):  # type: ignore[misc]
    """``sklearn.mixture.BayesianGaussianMixture``, fitted by variational Bayes EM on Ember's plan.

    What differs from its namesake:

    - The weights have a Dirichlet distribution; a Dirichlet process is refused.
    - For "tied" and "spherical" covariances the degrees of freedom count every row and column
      that a precision is estimated from; the namesake has its own rule.
    - ``lower_bound_`` has all constants: without latents it is the log evidence.
    - No ``reg_covar``; ``tol`` is relative, and 1e-8; missing entries and ``sample_weight`` as in
      ``GaussianMixture``.

    Args:
        n_components: The number of components.
        covariance_type: "full", "tied", "diag" or "spherical".
        weight_concentration_prior_type: "dirichlet_distribution".
        weight_concentration_prior: Of each component; ``1 / n_components`` unless given.
        mean_precision_prior: The rows that the prior mean is worth; 1 unless given.
        mean_prior: The mean of the columns unless given.
        degrees_of_freedom_prior: The number of columns unless given.
        covariance_prior: That of the data unless given.
        tol: Tolerance on what is still to gain, relative to the bound.
        max_iter: The largest number of iterations.
        n_init: How many starts to make.
        init_params: As for ``GaussianMixture``.
        random_state: Makes the fit repeatable.
        warm_start: Whether to start from where the last fit ended.
        verbose: Whether to show a progress bar.

    Example:
        >>> import numpy as np
        >>> from ember.inference.estimators import BayesianGaussianMixture
        >>> rng = np.random.default_rng(0)
        >>> x = np.concatenate([rng.normal(size=(30, 1)), rng.normal(9.0, 1.0, size=(60, 1))])
        >>> mixture = BayesianGaussianMixture(n_components=3, random_state=0).fit(x)
        >>> mixture.weight_concentration_.round(1).tolist()  # one component is left empty
        [60.3, 30.3, 0.3]
    """

    def __init__(
        self,
        *,
        n_components: int = 1,
        covariance_type: str = "full",
        weight_concentration_prior_type: str = "dirichlet_distribution",
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: object = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: object = None,
        tol: float = 1e-8,
        max_iter: int = 1000,
        n_init: int = 1,
        init_params: str = "kmeans",
        random_state: object = None,
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        self.n_components, self.covariance_type = n_components, covariance_type
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior, self.mean_prior = mean_precision_prior, mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.tol, self.max_iter, self.n_init = tol, max_iter, n_init
        self.init_params, self.random_state = init_params, random_state
        self.warm_start, self.verbose = warm_start, verbose

    def fit(self, X: object, y: object = None, sample_weight: object = None) -> Self:
        """Fits the posteriors to rows, of which entries may be missing.

        Args:
            X: ``(N, D)``.
            y: Ignored.
            sample_weight: How many times each row counts; once unless given.
        """
        rows = self._checked_rows(X)
        if self.weight_concentration_prior_type != "dirichlet_distribution":
            raise ValueError(
                "weight_concentration_prior_type must be 'dirichlet_distribution': a Dirichlet "
                "process is not offered."
            )
        kept, weights = without_idle_rows(rows, sample_weight)
        self._check_parameters(_filled(kept), xp=np)
        self._take_defaults(_filled(kept), weights)
        method = VBEM(
            model_named("gaussian_mixture"),
            init=self._last_fit(rows) or STARTS[self.init_params],
            restarts=self.n_init, tol=self.tol, max_iter=max(self.max_iter, 1),
            seed=seed_of(self.random_state), progress=bool(self.verbose),
        )  # fmt: skip
        data = torch.from_numpy(kept.astype(np.float64))
        fit = fitted(
            lambda: method.fit(
                data, components=self.n_components, covariance=self.covariance_type,
                prior=self._prior(), frequency=weights,
            )
        )  # fmt: skip
        return self._take(fit, rows)

    def _take_defaults(self, rows: Array, weights: torch.Tensor | None) -> None:
        """Defaults that weigh the rows, and a covariance that is none too near to singular."""
        counts = np.ones(len(rows)) if weights is None else weights.numpy()
        mean = np.average(rows, axis=0, weights=counts)
        if self.mean_prior is None:
            self.mean_prior_ = mean
        if self.covariance_prior is not None:
            return
        centred = rows - mean
        covariance = (counts[:, None] * centred).T @ centred / max(counts.sum() - 1.0, 1.0)
        covariance = covariance.astype(np.float64)
        if np.linalg.matrix_rank(covariance) < len(mean):
            own = np.diag(covariance)
            own = np.where(own > 0.0, own, own.mean() or 1.0)
            covariance = covariance + np.diag(SHRUNK * own)
        matrix = self.covariance_type in ("full", "tied")
        self.covariance_prior_ = covariance if matrix else np.diag(covariance).copy()
        if self.covariance_type == "spherical":
            self.covariance_prior_ = self.covariance_prior_.mean()

    def _prior(self) -> dict[str, object]:
        """scikit-learn's hyperparameters under the names of the model's."""
        spherical = self.covariance_type == "spherical"
        return {
            "concentration": self.weight_concentration_prior_,
            "kappa": self.mean_precision_prior_,
            "mean": self.mean_prior_,
            "df": float(self.degrees_of_freedom_prior_),
            "scale": float(self.covariance_prior_) if spherical else self.covariance_prior_,
        }

    def _take(self, fit: VariationalFit, rows: Array) -> Self:
        params, sizes = fit.params, fit.sizes
        count = params["weights"].shape[0]
        total = (
            sizes["weights|total"]
            if count > 1
            else params["weights"].new_tensor(self.weight_concentration_prior_ + fit.n_observations)
        )
        self.weight_concentration_ = array(total * params["weights"], rows)
        self.weights_ = array(params["weights"], rows)
        self.means_ = array(params["locs"], rows)
        self.precisions_ = array(params["precisions"], rows)
        self.covariances_, self.precisions_cholesky_ = _inverted(
            self.precisions_, self.covariance_type
        )
        counts = sizes["locs|count"].reshape(count, -1)[:, 0]
        self.mean_precision_ = array(counts, rows)
        matrix = self.covariance_type in ("full", "tied")
        freedom = sizes["precisions|df"] if matrix else 2.0 * sizes["precisions|shape"]
        if self.covariance_type == "diag":
            freedom = freedom[:, 0]
        self.degrees_of_freedom_ = array(freedom, rows)
        posterior = VariationalBayes.of(fit.plan).posteriors["precisions"]
        gaps = posterior.corrections({**params, **sizes})  # of each log precision
        if matrix:
            gaps = gaps / rows.shape[1]
        shape = (1, -1) if self.covariance_type == "tied" else (count, -1)
        spread = sizes["locs|count"].reshape(count, -1).reciprocal()
        self._corrections = array(
            0.5 * (gaps.reshape(shape) - spread).expand(count, rows.shape[1]), rows
        )
        self.lower_bound_, self.lower_bounds_ = fit.lower_bound, fit.history.tolist()
        self.n_iter_, self.converged_ = fit.iterations, fit.converged
        self.stop_reason_ = fit.stop_reason
        return self

    def _estimate_log_weights(self, xp: Any = None) -> Array:
        weights: Array = scipy.special.digamma(self.weight_concentration_) - scipy.special.digamma(
            self.weight_concentration_.sum()
        )
        return weights

    def _estimate_log_prob(self, X: Array, xp: Any = None) -> Array:
        """What is expected of the log densities under the posteriors."""
        if np.isnan(X).any():
            logs = self._log_prob_with_gaps(X)
        else:
            logs = sklearn.mixture.GaussianMixture._estimate_log_prob(self, X, xp=np)
        counted = ~np.isnan(X)  # of a matrix all columns of a row, for its gaps are completed
        if self.covariance_type in ("full", "tied"):
            counted[counted.any(1)] = True
        found: Array = logs + counted.astype(X.dtype) @ self._corrections.T
        return found


def _filled(rows: Array) -> Array:
    """Rows with gaps filled by the means of their columns, for defaults of priors.

    Raises:
        ValueError: If nothing is known of a column.
    """
    unknown = np.flatnonzero(np.isnan(rows).all(0))
    if len(unknown):
        raise ValueError(f"X has nothing but NaN in column(s) {', '.join(map(str, unknown))}.")
    return np.where(np.isnan(rows), np.nanmean(rows, axis=0), rows)
