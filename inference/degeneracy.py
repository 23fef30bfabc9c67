"""Detects components that collapse or empty, before they turn into NaN."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.answers.sequences import base_name
from ember.inference.families import Categorical, MultivariateNormal, Normal, Regression
from ember.inference.statistics import Group, Statistics
from ember.inference.structure import Parameter
from ember.inference.superposition import Superposed

__all__ = [
    "Degenerate",
    "check_maximiser",
    "check_scales",
    "emptied_states",
    "idle_entries",
    "near_singular",
]

EMPTIED = 1e-6  # expected observations of a state
MATRICES = (constraints.positive_definite, constraints.lower_cholesky)
ILL_CONDITIONED = 1e7  # condition number of a matrix that eats up half the digits
COLLAPSED = 1e-10  # variance of a component over the variance of all data, along any direction


class Degenerate(ArithmeticError):
    """A component of a parameter site has no finite maximiser; the message names both."""

    def __init__(self, site: str, component: str, what: str, index: tuple[int, ...] = ()) -> None:
        self.site, self.component, self.index = site, component, index
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
            raise Degenerate(site, name, message, tuple(index))


def _judge(
    kind: str, coefficients: list[Tensor], statistics: Statistics
) -> tuple[Tensor, Tensor, str]:
    tiny = 1e-250
    match kind:
        case "simplex":
            (counts,) = coefficients
            unbounded = (counts < 0).any(-1)
            return torch.zeros_like(unbounded), unbounded, _UNBOUNDED
        case "probability":
            a, b = coefficients
            unbounded = (a < 0) | (b < 0)
            return torch.zeros_like(unbounded), unbounded, _UNBOUNDED
        case "sticks":
            a, b = coefficients
            unbounded = ((a < 0) | (b < 0)).any(-1)
            return torch.zeros_like(unbounded), unbounded, _UNBOUNDED
        case "rate":
            a, b = coefficients
            empty = (a.abs() <= tiny) & (b.abs() <= tiny)
            smallest = COLLAPSED * _smallest_variance(statistics)
            if bool((a < 0).any()):
                return empty, a < 0, _UNBOUNDED
            return empty, (b <= tiny) | (b <= smallest * a), _COLLAPSED
        case "location":
            _, precision = coefficients
            return precision <= tiny, ~torch.isfinite(precision), _COLLAPSED
        case "vector":
            _, precision = coefficients
            empty = precision.diagonal(dim1=-2, dim2=-1).amax(-1) <= tiny
            return empty, ~torch.isfinite(precision).flatten(1).all(-1), _COLLAPSED
        case _:
            n, scatter = coefficients
            return n <= tiny, _is_singular(n, scatter, statistics), _SINGULAR


_COLLAPSED = (
    "has collapsed: its variance has shrunk to (almost) nothing, where the likelihood has no bound"
)
_SINGULAR = (
    "has collapsed: in a direction its variance has shrunk to (almost) nothing, where the "
    "likelihood has no bound (columns that determine each other do that to every component)"
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


def _variances(group: Group, sums: Tensor) -> Tensor | None:
    """Variance of all data in each cell's column, for normal families with a scale."""
    if isinstance(group.family, Normal) and group.reference is not None:
        _, column = torch.unique(group.reference, return_inverse=True)
        pooled = sums.new_zeros((int(column.max()) + 1, 3)).index_add_(0, column, sums)
        n, s, q = pooled.unbind(-1)
        return (q / n - (s / n).square())[column]
    if isinstance(group.family, Regression):
        pooled = sums.sum(0)
        return (pooled[-1] / pooled[0]).expand(len(sums))
    return None


def _smallest_variance(statistics: Statistics) -> float:
    """The smallest variance of a column of normal data, 0 where there is none."""
    found = [_variances(group, sums) for group, sums in statistics.groups.values()]
    return max(0.0, min((float(v.min()) for v in found if v is not None), default=0.0))


def near_singular(
    parameters: Mapping[str, Parameter], params: Mapping[str, Tensor]
) -> tuple[str, float] | None:
    """The matrix parameter with the largest condition number, if that eats up half the digits.

    The objective is then no more exact than the square root of a number's own precision.
    """
    found = {
        name: float(torch.linalg.cond(params[name].detach()).nan_to_num(nan=torch.inf).max())
        for name, parameter in parameters.items()
        if parameter.support in MATRICES and params[name].numel()
    }
    worst = max(found, key=lambda name: found[name], default=None)
    return None if worst is None or found[worst] < ILL_CONDITIONED else (worst, found[worst])


def check_scales(statistics: Statistics, params: Mapping[str, Tensor]) -> None:
    """Raises ``Degenerate`` if a scale found numerically has shrunk to nothing."""
    for group, sums in statistics.groups.values():
        variance = _variances(group, sums)
        slot = group.slots[-1]
        if variance is None or slot.table is None:
            continue
        collapsed = group.slot_values(params)[-1] * variance > 1.0 / COLLAPSED
        if bool(collapsed.any()):
            row = int(group.cells[collapsed.nonzero()[0, 0], -1])
            raise Degenerate(slot.sources[0], str(row), _COLLAPSED)


def emptied_states(
    statistics: Statistics, latents: Mapping[str, tuple[Any, ...]], chain: Container[str]
) -> str:
    """A sentence about the first latent state that (almost) no observation belongs to, or none.

    Args:
        statistics: Expected statistics at the end of a fit.
        latents: The group of every latent that has one; its counts are those of the states.
        chain: Latents that are steps of a chain, whose counts are taken together.
    """
    counts: dict[str, Tensor] = {}
    seen: set[tuple[str, tuple[Any, ...]]] = set()
    for name, key in latents.items():
        label = (base_name(name) or name) if name in chain else name
        if (label, key) in seen or not isinstance(statistics.groups[key][0].family, Categorical):
            continue
        seen.add((label, key))
        total = statistics.groups[key][1].sum(0)
        if label in counts and counts[label].shape != total.shape:
            continue
        counts[label] = counts[label] + total if label in counts else total
    for label, total in counts.items():
        empty = (total < EMPTIED).nonzero().reshape(-1)
        if len(empty) and float(total.sum()) > 1.5:  # a latent that occurs once has one state
            return (
                f"component {int(empty[0])} of latent site '{label}' has emptied: no observation "
                "belongs to it, so the data do not determine its parameters; use objective='map' "
                "with a proper prior, fewer components, or another start."
            )
    return ""


def idle_entries(statistics: Statistics, priors: Container[str]) -> str:
    """A sentence about the first parameter entry that feeds no count of a superposition, or none.

    Args:
        statistics: Expected statistics at the end of a fit.
        priors: Parameters that a prior determines where the data do not.
    """
    for group, sums in statistics.groups.values():
        if not isinstance(group.family, Superposed):
            continue
        idle = torch.zeros(int(group.cells.max()) + 1, dtype=torch.bool)
        idle[group.cells[:, 0]] = (sums == 0.0).all(-1)
        sizes = [statistics.params[name].numel() for name in group.slots[0].sources]
        for name, entries in zip(group.slots[0].sources, idle.split(sizes), strict=True):
            places = entries.nonzero().reshape(-1)
            if not len(places) or name in priors:
                continue
            others = f" (and of {len(places) - 1} others)" if len(places) > 1 else ""
            return (
                f"no observation depends on entry {int(places[0])}{others} of site '{name}', "
                "which keeps the value that it started with; give the site a prior "
                "(objective='map'), or leave such entries out."
            )
    return ""
