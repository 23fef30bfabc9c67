"""Hidden Markov models in the place of hmmlearn's."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import hmmlearn.hmm
import numpy as np
import pyro
import torch
from sklearn.utils import check_array
from torch import Tensor

from ember.inference.em import EM
from ember.inference.estimators.fitting import Array, fitted, model_named, seed_of

__all__ = ["CategoricalHMM", "GaussianHMM"]


LOG = logging.getLogger("hmmlearn.base")  # where its users look for this warning


class _Chain:
    """Sequences one below the other, as hmmlearn takes them, fitted by Ember's EM."""

    sites: ClassVar[dict[str, tuple[str, str]]] = {  # letter: site, attribute
        "s": ("initial", "startprob_"),
        "t": ("transition", "transmat_"),
    }

    n_components: int
    n_iter: int
    objective: str
    prior: Mapping[str, object] | None
    tol: float
    params: str
    init_params: str
    random_state: object
    verbose: bool
    monitor_: Any

    def _estimate(self, model: str, x: Tensor, lengths: object, **options: Any) -> None:
        """Fits from the attributes that get no start, and with those held that are not fitted."""
        self._warn_of_ignored()
        sequences, steps = _sequences(x, lengths)
        held = self._attributes([s for s in self.sites if s not in self.params])
        known = [s for s, (_, attribute) in self.sites.items() if hasattr(self, attribute)]
        start = self._attributes(
            [s for s in known if s in self.params and s not in self.init_params]
        )
        chain = model_named(model)
        method = EM(
            pyro.condition(chain, data=held) if held else chain, self.objective,
            init=start or "kmeans", tol=self.tol, max_iter=max(self.n_iter, 1),
            seed=seed_of(self.random_state), progress=bool(self.verbose),
        )  # fmt: skip
        options |= {"states": self.n_components, "lengths": steps, "prior": self.prior}
        self.monitor_._reset()
        if self.n_iter == 0:
            self._take({**held, **method.initialise(sequences, **options)})
            return
        fit = fitted(lambda: method.fit(sequences, **options))
        self._take({**held, **fit.params})
        self.monitor_.history.extend(fit.history.tolist())
        self.monitor_.iter = fit.iterations
        self.converged_, self.stop_reason_ = fit.converged, fit.stop_reason

    def _take(self, params: Mapping[str, Tensor]) -> None:
        for site, attribute in self.sites.values():
            self._set(attribute, params[site].cpu().numpy())

    def _warn_of_ignored(self) -> None:
        for letter, (_, attribute) in self.sites.items():
            if letter in self.init_params and hasattr(self, attribute):
                LOG.warning(
                    "Even though the %r attribute is set, it will be overwritten during "
                    "initialization because 'init_params' contains %r",
                    attribute.removeprefix("_").removesuffix("_") + "_", letter,
                )  # fmt: skip

    def _attributes(self, letters: Sequence[str]) -> dict[str, Tensor]:
        """The attributes of some letters, as parameters of the model."""
        found = {}
        for letter in letters:
            site, attribute = self.sites[letter]
            if not hasattr(self, attribute):
                raise ValueError(
                    f"'{letter}' is not among params, so {attribute} must be set before fit."
                )
            found[site] = torch.as_tensor(np.asarray(self._get(attribute), dtype=np.float64))
        return found

    def _get(self, attribute: str) -> Array:
        value: Array = getattr(self, attribute)
        return value

    def _set(self, attribute: str, value: Array) -> None:
        setattr(self, attribute, value)


class GaussianHMM(_Chain, hmmlearn.hmm.GaussianHMM):  # type: ignore[misc]
    """``hmmlearn.hmm.GaussianHMM``, fitted by Ember's EM.

    What differs from its namesake: the priors are those of
    ``ember.models.hidden_markov_gaussian`` (``objective="map"``; "mle" leaves them out, and there
    is no ``min_covar``); ``tol`` is relative, 1e-8, and ``n_iter`` 1000; missing entries (NaN) are
    allowed in ``fit``; ``monitor_.history`` holds the objective.

    Args:
        n_components: The number of states.
        covariance_type: "diag", "full", "tied" or "spherical".
        objective: "map" or "mle".
        prior: Hyperparameters that replace the default ones.
        algorithm: How ``predict`` decodes: "viterbi" or "map".
        random_state: Makes the fit repeatable.
        n_iter: The largest number of iterations.
        tol: Tolerance on what is still to gain, relative to the objective.
        verbose: Whether to show a progress bar.
        params: Letters of what is estimated (s, t, m, c); the rest stays as it has been set.
        init_params: Letters of what gets a start; the rest starts from what has been set.
        implementation: Of hmmlearn's passes in predictions, "log" or "scaling".

    Example:
        >>> import numpy as np
        >>> from ember.inference.estimators import GaussianHMM
        >>> noise = np.random.default_rng(0).normal(size=(60, 1))
        >>> x = np.repeat([0.0, 5.0, 0.0], 20)[:, None] + noise
        >>> GaussianHMM(2, random_state=0).fit(x).predict(x)[[0, 30, 59]].tolist()
        [0, 1, 0]
    """

    sites: ClassVar[dict[str, tuple[str, str]]] = {
        **_Chain.sites,
        "m": ("locs", "means_"),
        "c": ("precisions", "_covars_"),
    }
    startprob_prior = transmat_prior = 1.0
    min_covar = means_prior = means_weight = covars_prior = covars_weight = 0.0

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "diag",
        *,
        objective: str = "map",
        prior: Mapping[str, object] | None = None,
        algorithm: str = "viterbi",
        random_state: object = None,
        n_iter: int = 1000,
        tol: float = 1e-8,
        verbose: bool = False,
        params: str = "stmc",
        init_params: str = "stmc",
        implementation: str = "log",
    ) -> None:
        hmmlearn.hmm.GaussianHMM.__init__(
            self, n_components, covariance_type, algorithm=algorithm, random_state=random_state,
            n_iter=n_iter, tol=tol, verbose=verbose, params=params, init_params=init_params,
            implementation=implementation,
        )  # fmt: skip
        self.objective, self.prior = objective, prior

    def fit(self, X: object, lengths: object = None) -> Self:
        """Fits the chain to sequences ``(T, D)`` one below the other, of the given lengths."""
        rows: Array = check_array(X, dtype=np.float64, ensure_all_finite="allow-nan")
        self.n_features = rows.shape[1]
        self._estimate(
            "hidden_markov_gaussian", torch.tensor(rows), lengths,
            covariance=self.covariance_type,
        )  # fmt: skip
        return self

    def _get(self, attribute: str) -> Array:
        value = super()._get(attribute)
        if attribute == "_covars_":
            value = value.reshape(-1) if self.covariance_type == "spherical" else value
            return _inverse(value, self.covariance_type)
        return value

    def _set(self, attribute: str, value: Array) -> None:
        if attribute == "_covars_":
            value = _inverse(value, self.covariance_type)
        super()._set(attribute, value)


class CategoricalHMM(_Chain, hmmlearn.hmm.CategoricalHMM):  # type: ignore[misc]
    """``hmmlearn.hmm.CategoricalHMM``, fitted by Ember's EM.

    What differs from its namesake: the priors are those of
    ``ember.models.hidden_markov_categorical``; ``tol`` is relative, 1e-8, and ``n_iter`` 1000;
    ``monitor_.history`` holds the objective.

    Args:
        n_components: The number of states.
        objective: "map" or "mle".
        prior: Hyperparameters that replace the default ones.
        n_features: The number of symbols; one more than the highest unless given.
        algorithm: How ``predict`` decodes: "viterbi" or "map".
        random_state: Makes the fit repeatable.
        n_iter: The largest number of iterations.
        tol: Tolerance on what is still to gain, relative to the objective.
        verbose: Whether to show a progress bar.
        params: Letters of what is estimated (s, t, e); the rest stays as it has been set.
        init_params: Letters of what gets a start; the rest starts from what has been set.
        implementation: Of hmmlearn's passes in predictions, "log" or "scaling".

    Example:
        >>> import numpy as np
        >>> from ember.inference.estimators import CategoricalHMM
        >>> x = np.repeat([0, 1, 0, 2], 15)[:, None]
        >>> CategoricalHMM(2, random_state=0).fit(x).emissionprob_.shape
        (2, 3)
    """

    sites: ClassVar[dict[str, tuple[str, str]]] = {
        **_Chain.sites,
        "e": ("probs", "emissionprob_"),
    }
    startprob_prior = transmat_prior = emissionprob_prior = 1.0

    def __init__(
        self,
        n_components: int = 1,
        *,
        objective: str = "map",
        prior: Mapping[str, object] | None = None,
        n_features: int | None = None,
        algorithm: str = "viterbi",
        random_state: object = None,
        n_iter: int = 1000,
        tol: float = 1e-8,
        verbose: bool = False,
        params: str = "ste",
        init_params: str = "ste",
        implementation: str = "log",
    ) -> None:
        hmmlearn.hmm.CategoricalHMM.__init__(
            self, n_components, n_features=n_features, algorithm=algorithm,
            random_state=random_state, n_iter=n_iter, tol=tol, verbose=verbose, params=params,
            init_params=init_params, implementation=implementation,
        )  # fmt: skip
        self.objective, self.prior = objective, prior

    def fit(self, X: object, lengths: object = None) -> Self:
        """Fits the chain to sequences of codes ``(T, 1)`` one below the other."""
        rows: Array = check_array(X)
        if rows.shape[1] != 1:
            raise ValueError(
                f"X must have one column, the codes of the symbols, not {rows.shape[1]}."
            )
        self._check_and_set_n_features(rows)
        codes = torch.from_numpy(rows[:, 0].astype(np.int64))
        self._estimate("hidden_markov_categorical", codes, lengths, levels=self.n_features)
        return self

    def _compute_likelihood(self, X: Array) -> Array:
        """Of new data; symbols that no state emits are refused by name."""
        self._check_and_set_n_features(X)
        found: Array = super()._compute_likelihood(X)
        return found


def _inverse(value: Array, covariance_type: str) -> Array:
    """Covariances from precisions, or the reverse."""
    if covariance_type in ("full", "tied"):
        inverse: Array = np.linalg.inv(value)
        return (inverse + np.swapaxes(inverse, -1, -2)) / 2.0
    return 1.0 / value


def _sequences(x: Tensor, lengths: object) -> tuple[Tensor, Tensor | None]:
    """One sequence as it is; several side by side ``(S, T, ...)``, and the length of each."""
    if lengths is None:
        return x, None
    steps = np.asarray(lengths).reshape(-1)
    if steps.sum() != len(x):
        raise ValueError(f"lengths add up to {steps.sum()}, but X has {len(x)} rows.")
    if len(steps) == 1:
        return x, None
    out = x.new_zeros((len(steps), int(steps.max()), *x.shape[1:]))
    for row, piece in zip(out, x.split(steps.tolist()), strict=True):
        row[: len(piece)] = piece
    return out, torch.from_numpy(steps.astype(np.int64))
