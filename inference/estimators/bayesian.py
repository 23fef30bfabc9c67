"""Bayesian Gaussian mixtures in the place of scikit-learn's."""

from typing import Any, Self

import numpy as np
import scipy.special
import scipy.stats
import sklearn.mixture
import torch

from ember.inference.estimators.fitting import (
    Array,
    array,
    fitted,
    model_named,
    seed_of,
    without_idle_rows,
)
from ember.inference.estimators.gaps import STARTS, Gaps, inverted
from ember.inference.variational_bayes.variational_bayes import VariationalBayes
from ember.inference.variational_fit import VariationalFit
from ember.inference.vbem import VBEM

__all__ = ["BayesianGaussianMixture"]


SHRUNK = 1e-6  # of its diagonal that keeps a default covariance of too few rows proper


class BayesianGaussianMixture(Gaps, sklearn.mixture.BayesianGaussianMixture):  # type: ignore[misc]
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
        counts = np.ones(len(rows)) if weights is None else weights.cpu().numpy()
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
        self.covariances_, self.precisions_cholesky_ = inverted(
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
