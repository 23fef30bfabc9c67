"""What the estimators share: a fit by Ember from scikit-learn's arguments."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor

from ember.inference.fit import Fit

__all__ = ["Array", "array", "fitted", "given", "model_named", "seed_of", "without_idle_rows"]


Array = np.ndarray[Any, Any]
F = TypeVar("F", bound=Fit)
UNCONVERGED = (  # as scikit-learn says it
    "Best performing initialization did not converge. Try different init parameters, or increase "
    "max_iter, tol, or check for degenerate data."
)


def model_named(name: str) -> Callable[..., None]:
    """A ready model; by import string, as the engine knows no particular one."""
    model: Callable[..., None] = getattr(importlib.import_module("ember.models"), name)
    return model


def seed_of(random_state: object) -> int:
    """A seed for Ember from what scikit-learn calls a random state."""
    return int(check_random_state(random_state).randint(2**31 - 1))


def without_idle_rows(x: Array, sample_weight: object) -> tuple[Array, Tensor | None]:
    """The rows that have a weight above zero, and their weights; None where all weigh the same."""
    if sample_weight is None:
        return x, None
    weights = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
    kept = weights > 0.0
    if not kept.any():
        raise ValueError("sample_weight is zero for every row; at least two rows need a weight.")
    return x[kept], torch.from_numpy(weights[kept])


def fitted(run: Callable[[], F]) -> F:
    """A fit whose warning is the one that scikit-learn gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        fit = run()
    if not fit.converged:
        warnings.warn(f"{UNCONVERGED} ({fit.stop_reason})", ConvergenceWarning, stacklevel=3)
    return fit


def array(value: Tensor, like: Array) -> Array:
    """A tensor as an array of another one's floating type."""
    found: Array = value.detach().cpu().numpy().astype(like.dtype)
    return found


def given(**params: object) -> Mapping[str, Tensor]:
    """Those of some starting values that are given, as tensors."""
    return {
        name: torch.as_tensor(np.asarray(value, dtype=np.float64))
        for name, value in params.items()
        if value is not None
    }
