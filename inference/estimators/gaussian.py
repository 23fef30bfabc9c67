"""Gaussian mixtures in the place of scikit-learn's."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import sklearn.mixture
import torch
from sklearn.utils._param_validation import StrOptions

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
from ember.inference.estimators.gaps import STARTS, Gaps, inverted

__all__ = ["GaussianMixture"]


class GaussianMixture(Gaps, sklearn.mixture.GaussianMixture):  # type: ignore[misc]
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
        self.covariances_, self.precisions_cholesky_ = inverted(
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
