"""Detects components that collapse or empty, before they turn into NaN."""

import torch
from torch import Tensor

from ember.inference.families import MultivariateNormal, Normal
from ember.inference.statistics import Statistics

__all__ = ["Degenerate", "check_maximiser"]

COLLAPSED = 1e-10  # variance of a component over the variance of all data, along any direction


class Degenerate(ArithmeticError):
    """A component of a parameter site has no finite maximiser; the message names both."""

    def __init__(self, site: str, component: str, what: str) -> None:
        self.site, self.component = site, component
        where = f"component {component} of site '{site}'" if component else f"site '{site}'"
        super().__init__(
            f"{where} {what}; use objective='map' with a proper "
            "prior, fewer components, or another start."
        )


def check_maximiser(
    site: str,
    kind: str,
    coefficients: list[Tensor],
    rows_shape: torch.Size,
    statistics: Statistics,
) -> None:
    """Raises ``Degenerate`` if the coefficients of a slot have no finite, interior maximiser."""
    empty, bad, what = _judge(kind, coefficients, statistics)
    for wrong, message in ((empty, "has emptied: no observation belongs to it"), (bad, what)):
        if bool(wrong.any()):
            row = int(wrong.reshape(-1).nonzero()[0])
            index = [int(i) for i in torch.unravel_index(torch.tensor(row), rows_shape or (1,))]
            name = str(index[0]) if len(index) == 1 else str(tuple(index))
            raise Degenerate(site, name, message)


def _judge(
    kind: str, coefficients: list[Tensor], statistics: Statistics
) -> tuple[Tensor, Tensor, str]:
    tiny = 1e-250
    match kind:
        case "simplex":
            (counts,) = coefficients
            total = counts.sum(-1)
            return total.abs() <= tiny, (counts < 0).any(-1), _UNBOUNDED
        case "probability":
            a, b = coefficients
            return (a + b).abs() <= tiny, (a < 0) | (b < 0), _UNBOUNDED
        case "rate":
            a, b = coefficients
            empty = (a.abs() <= tiny) & (b.abs() <= tiny)
            smallest = COLLAPSED * _smallest_variance(statistics)
            return empty, (a < 0) | (b <= tiny) | (b <= smallest * a), _COLLAPSED
        case "location":
            _, precision = coefficients
            return precision <= tiny, ~torch.isfinite(precision), _COLLAPSED
        case "vector":
            _, precision = coefficients
            empty = precision.diagonal(dim1=-2, dim2=-1).amax(-1) <= tiny
            return empty, ~torch.isfinite(precision).flatten(1).all(-1), _COLLAPSED
        case _:
            n, scatter = coefficients
            return n <= tiny, _is_singular(n, scatter, statistics), _COLLAPSED


_COLLAPSED = (
    "has collapsed: its variance has shrunk to (almost) nothing, where the likelihood has no bound"
)
_UNBOUNDED = "has a prior density without bound (concentration below 1) and too few observations"


def _is_singular(n: Tensor, scatter: Tensor, statistics: Statistics) -> Tensor:
    """Whether a covariance is singular relative to the variances of all data.

    The squared pivots of a Cholesky factor are the variances of each coordinate given those
    before it; one that is next to nothing means a direction without spread.
    """
    factor, failed = torch.linalg.cholesky_ex(scatter)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    floor = COLLAPSED * n[:, None] * _overall_variance(statistics, scatter.shape[-1])
    singular: Tensor = (failed != 0) | ~(pivots > floor).all(-1)
    return singular


def _overall_variance(statistics: Statistics, dim: int) -> Tensor:
    """Variance of each column of the multivariate normal data; 0 where there are none."""
    for group, sums in statistics.groups.values():
        if not isinstance(group.family, MultivariateNormal) or group.reference is None:
            continue
        if group.reference.shape[-1] == dim:
            n, s, q = MultivariateNormal.moments(sums.sum(0), dim)
            return q.diagonal() / n - (s / n).square()
    return torch.zeros(dim)


def _smallest_variance(statistics: Statistics) -> float:
    """The smallest variance of a column of normal data, 0 where there is none."""
    smallest: list[float] = []
    for group, sums in statistics.groups.values():
        if isinstance(group.family, Normal) and group.reference is not None:
            _, column = torch.unique(group.reference, return_inverse=True)
            pooled = sums.new_zeros((int(column.max()) + 1, 3)).index_add_(0, column, sums)
            n, s, q = pooled.unbind(-1)
            smallest.append(float((q / n - (s / n) ** 2).min()))
    return max(0.0, min(smallest, default=0.0))
