"""Factor analysis in the place of scikit-learn's."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import scipy.stats
import sklearn.decomposition
import torch
from sklearn.utils.validation import check_is_fitted, validate_data

from ember.inference.em import EM
from ember.inference.estimators.fitting import Array, array, fitted, model_named, seed_of

__all__ = ["FactorAnalysis"]


class FactorAnalysis(sklearn.decomposition.FactorAnalysis):  # type: ignore[misc]
    """``sklearn.decomposition.FactorAnalysis``, fitted by Ember's EM.

    What differs from its namesake: ``tol`` is relative and 1e-8; entries of the data may be missing
    (NaN); ``objective="map"`` keeps the priors of ``ember.models.factor_analysis``, the
    default is maximum likelihood.

    Args:
        n_components: The number of factors; None for as many as columns.
        objective: "mle" or "map".
        tol: Tolerance on what is still to gain, relative to the objective.
        max_iter: The largest number of iterations.
        rotation: None, "varimax" or "quartimax".
        random_state: Makes the fit repeatable.

    Example:
        >>> import numpy as np
        >>> from ember.inference.estimators import FactorAnalysis
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(200, 1)) @ np.ones((1, 4)) + 0.3 * rng.normal(size=(200, 4))
        >>> FactorAnalysis(1).fit(x).transform(x[:2]).shape
        (2, 1)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        name: constraint
        for name, constraint in sklearn.decomposition.FactorAnalysis._parameter_constraints.items()
        if name in ("n_components", "tol", "max_iter", "rotation", "random_state")
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        objective: str = "mle",
        tol: float = 1e-8,
        max_iter: int = 1000,
        rotation: str | None = None,
        random_state: object = 0,
    ) -> None:
        self.n_components, self.objective, self.tol = n_components, objective, tol
        self.max_iter, self.rotation, self.random_state = max_iter, rotation, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def transform(self, X: object) -> Array:
        """The expected factors of each row given its observed entries, ``(N, F)``."""
        return self._by_pattern(X, self._factors_of, (self.components_.shape[0],))

    def score_samples(self, X: object) -> Array:
        """The log density of each row's observed entries."""
        return self._by_pattern(X, self._log_density, ())

    def _by_pattern(
        self, X: object, function: Callable[[Array, Array], Array], shape: tuple[int, ...]
    ) -> Array:
        """A function of the rows of each pattern of gaps, put together."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        out = np.zeros((len(rows), *shape))
        patterns, place = np.unique(np.isnan(rows), axis=0, return_inverse=True)
        for i, missing in enumerate(patterns):
            own = place.reshape(-1) == i
            if not missing.all():
                out[own] = function(rows[own][:, ~missing] - self.mean_[~missing], ~missing)
        return out

    def _factors_of(self, centred: Array, seen: Array) -> Array:
        scaled = self.components_[:, seen] / self.noise_variance_[seen]
        precision = np.eye(len(scaled)) + scaled @ self.components_[:, seen].T
        found: Array = np.linalg.solve(precision, scaled @ centred.T).T
        return found

    def _log_density(self, centred: Array, seen: Array) -> Array:
        covariance = self.get_covariance()[np.ix_(seen, seen)]
        density = scipy.stats.multivariate_normal(np.zeros(len(covariance)), covariance)
        return np.atleast_1d(density.logpdf(centred))

    def fit(self, X: object, y: object = None) -> Self:
        """Fits loadings and noise to rows ``(N, D)``, of which entries may be missing."""
        self._validate_params()
        rows: Array = validate_data(
            self, X, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2
        )
        method = EM(
            model_named("factor_analysis"), self.objective, tol=self.tol, max_iter=self.max_iter,
            seed=seed_of(self.random_state),
        )  # fmt: skip
        data = torch.tensor(rows)  # a copy: those of data frames cannot be written
        factors = rows.shape[1] if self.n_components is None else self.n_components
        fit = fitted(lambda: method.fit(data, factors=factors))
        self.mean_ = array(fit.params["locs"], rows)
        self.noise_variance_ = array(fit.params["uniquenesses"], rows)
        roots = np.sqrt(self.noise_variance_)
        scaled = array(fit.params["loadings"], rows).reshape(len(roots), -1) / roots[:, None]
        # The rotation at which factors explain one after the other what is left, as the namesake's.
        left, sizes, _ = np.linalg.svd(scaled, full_matrices=False)
        self.components_ = (left * sizes).T * roots
        if self.rotation is not None:
            self.components_ = self._rotate(self.components_)
        self.loglike_ = fit.history.tolist()
        self.n_iter_ = fit.iterations
        self.stop_reason_ = fit.stop_reason
        return self
