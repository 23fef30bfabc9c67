"""What Gaussian mixtures share: rows with gaps, kinds of starts, covariances of every type."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
import torch
from sklearn.utils.validation import check_is_fitted, validate_data

from ember.inference.estimators.fitting import (
    Array,
    given,
)

__all__ = ["STARTS", "Gaps", "inverted"]


STARTS = {
    "kmeans": "kmeans",
    "k-means++": "kmeans",
    "random": "random",
    "random_from_data": "points",
}


class Gaps:
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


def inverted(precisions: Array, covariance_type: str) -> tuple[Array, Array]:
    """Covariances, and the factors of the precisions that scikit-learn predicts with."""
    if covariance_type in ("full", "tied"):
        return np.linalg.inv(precisions), np.linalg.cholesky(precisions)
    return 1.0 / precisions, np.sqrt(precisions)
