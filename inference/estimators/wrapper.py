"""Any model behind scikit-learn's interface."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from ember.inference.em import EM
from ember.inference.estimators.fitting import Array, fitted, seed_of
from ember.inference.fit import Fit

__all__ = ["ModelEstimator"]


class ModelEstimator(BaseEstimator):  # type: ignore[misc]
    """A Pyro model as a scikit-learn estimator: ``model(X, **options)``, or ``model(y, X=X)``.

    A model with a keyword ``X`` has ``y`` as its data, as regressions of ``ember.models`` do; for
    any other model ``y`` is ignored. Pipelines, grid searches over ``options``, ``clone`` and
    pickles (of models that can be imported) work as for any estimator.

    Args:
        model: A Pyro function that takes the data.
        options: Keyword arguments of the model.
        latent: The latent site that ``predict`` is about; needed only if there are several.
        objective: "map" or "mle".
        restarts: How many starts to make.
        tol: Tolerance on what is still to gain, relative to the objective.
        max_iter: The largest number of iterations.
        random_state: Makes the fit repeatable.

    Attributes:
        fit_: The ``Fit``.

    Example:
        >>> import numpy as np
        >>> from ember.inference.estimators import ModelEstimator
        >>> from ember.models import poisson_mixture
        >>> x = np.array([[0.0], [1.0], [2.0], [9.0], [12.0]])
        >>> estimator = ModelEstimator(poisson_mixture, options={"components": 2}, random_state=0)
        >>> estimator.fit(x).predict(x).tolist()
        [0, 0, 0, 1, 1]
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        options: Mapping[str, Any] | None = None,
        latent: str | None = None,
        objective: str = "map",
        restarts: int = 1,
        tol: float = 1e-8,
        max_iter: int = 1000,
        random_state: object = None,
    ) -> None:
        self.model, self.options, self.latent = model, options, latent
        self.objective, self.restarts, self.tol = objective, restarts, tol
        self.max_iter, self.random_state = max_iter, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: object, y: object = None) -> Self:
        """Fits the model to rows ``X``, or to responses ``y`` with covariates ``X``."""
        rows = self._rows(X, ensure_min_samples=2)
        method = EM(
            self.model, self.objective, restarts=self.restarts, tol=self.tol,
            max_iter=self.max_iter, seed=seed_of(self.random_state),
        )  # fmt: skip
        if not isinstance(self.options or {}, Mapping):
            raise TypeError(f"options={self.options!r} must be a dict of the model's options.")
        options = dict(self.options or {})
        self._has_response = "X" in [*inspect.signature(self.model).parameters][1:]
        if not self._has_response:
            self.fit_: Fit = fitted(lambda: method.fit(rows, **options))
        else:
            response = _response(y)
            self.fit_ = fitted(lambda: method.fit(response, X=rows, **options))
        self.n_iter_ = self.fit_.iterations
        return self

    def predict(self, X: object) -> Array:
        """The most probable value of the latent for each row; of a continuous one the mean."""
        found = self.fit_for(X).predict(self._new_rows(X))
        values = found[self._latent()] if isinstance(found, Mapping) else found
        labels: Array = values.cpu().numpy()
        return labels

    def predict_proba(self, X: object) -> Array:
        """The probability of each state of the latent for each row, ``(N, K)``."""
        probs: Array = (
            self.fit_for(X).posterior(self._latent(), self._new_rows(X)).probs.cpu().numpy()
        )
        return probs

    def score_samples(self, X: object) -> Array:
        """The log likelihood of each row, latents integrated out."""
        scores: Array = self.fit_for(X).log_prob(self._new_rows(X)).cpu().numpy()
        return scores

    def score(self, X: object, y: object = None) -> float:
        """The mean log likelihood of a row; with ``y`` that of the responses."""
        check_is_fitted(self)
        if not self._has_response:
            return float(self.score_samples(X).mean())
        response = _response(y)
        return float(self.fit_.log_prob(response, X=self._new_rows(X)).mean())

    def fit_for(self, X: object) -> Fit:
        """The fit, if it can say something about new rows alone.

        Raises:
            ValueError: If the model was fitted to responses.
        """
        check_is_fitted(self)
        if self._has_response:
            raise ValueError(
                "the model was fitted to responses y, without which nothing is known of the "
                "latents of new rows; ask .fit_ itself, for instance fit_.posterior(name, y, X=X)."
            )
        return self.fit_

    def _latent(self) -> str:
        if self.latent is not None:
            return self.latent
        known = self.fit_.plan.discrete_latents
        if len(known) != 1:
            raise ValueError(f"the model has the latent sites {list(known)}; name one, latent=...")
        return known[0]

    def _rows(self, X: object, **options: Any) -> torch.Tensor:
        rows = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", **options)
        return torch.tensor(rows)  # a copy: those of data frames cannot be written

    def _new_rows(self, X: object) -> torch.Tensor:
        return self._rows(X, reset=False)


def _response(y: object) -> torch.Tensor:
    """Responses as a tensor.

    Raises:
        ValueError: If there are none.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None.")
    return torch.tensor(np.asarray(y, dtype=np.float64))
