"""Hyperparameters: the user's where given, else a weak default in the units of the data.

The Gaussian defaults are those of Fraley and Raftery (2007). They are computed from the weighted
moments of the data, so an integer frequency gives what repeated rows give.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.moments import Moments, moments
from ember.models.parts.of_data import of_data

__all__ = [
    "HALF_COUNT",
    "Hyperparameters",
    "Prior",
    "count_mean",
    "default_scale",
    "default_variance",
    "weighted_mean",
]

Prior = Mapping[str, object]
Default = float | Callable[[], Tensor]

# A Dirichlet, Beta or Gamma with this shape adds half a count, so that the posterior mode is the
# posterior mean under Jeffreys' prior (up to the Gamma's rate): off the boundary, and else weak.
HALF_COUNT = 1.5


class Hyperparameters:
    """The hyperparameters of one model, each read by its key, checked and broadcast."""

    def __init__(self, prior: Prior | None, keys: Sequence[str], like: Tensor) -> None:
        """Refuse keys that the model does not have; `like` gives dtype and device."""
        if prior is not None and not isinstance(prior, Mapping):
            raise TypeError(
                f"`prior` must be a mapping such as {{{keys[0]!r}: 1.0}}, "
                f"not {type(prior).__name__}."
            )
        self.given = dict(prior or {})
        self.like = like
        for key in self.given:
            if key not in keys:
                allowed = ", ".join(repr(name) for name in keys)
                raise ValueError(
                    f"`prior` has the unknown key {key!r}: this model takes {allowed}."
                )

    def covers(self, *keys: str) -> bool:
        """Whether all of these are given."""
        return all(self.given.get(key) is not None for key in keys)

    def real(self, key: str, shape: Sequence[int], default: Default) -> Tensor:
        """Finite numbers of any sign."""
        if self.given.get(key) is not None:
            try:
                value = torch.as_tensor(
                    self.given[key], dtype=self.like.dtype, device=self.like.device
                )
                value = value.expand(tuple(shape))
            except (RuntimeError, TypeError, ValueError):
                raise ValueError(
                    f"prior[{key!r}] must be a number or an array that broadcasts to shape "
                    f"{tuple(shape)}, not {self._describe(key)}."
                ) from None
        elif callable(default):
            value = default().expand(tuple(shape))
        else:
            value = self.like.new_full(tuple(shape), default)
        if not bool(value.isfinite().all()):
            raise ValueError(f"prior[{key!r}] must be finite, but has NaN or infinite values.")
        return value

    def above(self, key: str, shape: Sequence[int], default: Default, bound: float = 0.0) -> Tensor:
        """Numbers greater than `bound`."""
        value = self.real(key, shape, default)
        if not bool((value > bound).all()):
            raise ValueError(
                f"prior[{key!r}] must be greater than {bound:g}, but its least value is "
                f"{float(value.min()):g}."
            )
        return value

    def positive_definite(self, key: str, shape: Sequence[int], default: Default) -> Tensor:
        """Symmetric positive definite matrices."""
        value = self.real(key, shape, default)
        proper = dist.constraints.positive_definite.check(value)
        if not bool(proper.all()):
            raise ValueError(
                f"prior[{key!r}] must be symmetric and positive definite, in the units of a "
                "covariance matrix."
            )
        return value

    def _describe(self, key: str) -> str:
        value = self.given[key]
        shape = getattr(value, "shape", None)
        return type(value).__name__ if shape is None else f"shape {tuple(shape)}"


def weighted_mean(rows: Tensor, frequency: Tensor) -> Tensor:
    """The column means (D,) of the rows (N, D), row n counted frequency[n] times, NaN left out."""
    return moments(rows, frequency).mean


def count_mean(rows: Tensor, frequency: Tensor) -> Tensor:
    """Column means of counts, kept off zero: a column of zeros counts as half an event in all."""
    found = moments(rows, frequency)
    return torch.maximum(found.mean, 0.5 / found.total.clamp_min(0.5))


@of_data
def default_variance(rows: Tensor, frequency: Tensor, components: int) -> Tensor:
    """The variance (D,) of each column, shared out among the components."""
    found = moments(rows, frequency, "variance")
    assert found.squares is not None
    variance = _varying(found.squares / _divisor(found), found.mean)
    return variance / _shrinkage(rows, components)


@of_data
def default_scale(rows: Tensor, frequency: Tensor, components: int) -> Tensor:
    """The covariance (D, D) of the rows, shared out among the components.

    Where columns are linearly dependent, or more than the rows, the correlation matrix is drawn to
    the identity by the square root of the rounding error, so that the prior stays proper. Missing
    entries count as their column's mean in the correlations, which keeps these a proper matrix.
    """
    found = moments(rows, frequency, "covariance")
    products, divisor = found.squares, _divisor(found)
    assert products is not None
    variance = _varying(products.diagonal() / divisor, found.mean)
    deviation = variance.sqrt()
    norms = divisor.sqrt() * deviation
    correlation = products / torch.outer(norms, norms)
    correlation = (correlation + correlation.mT) / 2
    correlation.diagonal().fill_(1.0)
    least = math.sqrt(torch.finfo(rows.dtype).eps)
    if float(torch.linalg.eigvalsh(correlation)[0]) < least:
        correlation = correlation * (1 - least)
        correlation.diagonal().fill_(1.0)
    scale = correlation * torch.outer(deviation, deviation)
    return scale / _shrinkage(rows, components)


def _divisor(found: Moments) -> Tensor:
    """What the squares of each column are divided by."""
    return torch.where(found.total > 1, found.total - 1, 1.0)


def _shrinkage(rows: Tensor, components: int) -> float:
    return float(components ** (2 / rows.shape[-1]))


def _varying(variance: Tensor, mean: Tensor) -> Tensor:
    """The variances, a constant column being refused (or, unvalidated, given its own size)."""
    rounding = 8 * torch.finfo(mean.dtype).eps * mean.abs()
    constant = variance <= rounding.square()
    if not bool(constant.any()):
        return variance
    if dist.is_validation_enabled():
        columns = ", ".join(str(int(column)) for column in constant.nonzero())
        raise ValueError(
            f"`x` is constant in column(s) {columns}, so the default prior has no scale there: "
            "drop them (they tell no components apart), or pass prior={'scale': ...}."
        )
    return torch.where(constant, torch.where(mean == 0, 1.0, mean.square()), variance)
