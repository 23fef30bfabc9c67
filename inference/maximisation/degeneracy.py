"""Detects components that collapse or empty, before they turn into NaN."""

from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.factors.tied import TieKey
from ember.inference.families.discrete import Categorical
from ember.inference.families.superposition import Superposed
from ember.inference.parameters.parameter import Parameter
from ember.inference.plan.statistics import Statistics
from ember.inference.reading.sequences import base_name

__all__ = [
    "Degenerate",
    "Judged",
    "check_maximiser",
    "check_scales",
    "emptied_states",
    "idle_entries",
    "near_singular",
    "uncertainty",
]


EMPTIED = 1e-6  # expected observations of a state
MATRICES = (constraints.positive_definite, constraints.lower_cholesky)
ILL_CONDITIONED = 1e7  # condition number of a matrix that eats up half the digits
SINGULAR = 1e-13  # variance of a column given others over its own: what rounding leaves of zero
ROUNDED = 4.0 * torch.finfo(torch.float64).eps  # the same where a prior has a part in it
BY_PRIOR = "use objective='map' with a proper prior, fewer components, or another start."


BETTER_PRIOR = (
    "give it a prior that rules this out (Gamma with a positive rate for a precision, Wishart for "
    "a precision matrix), fewer components, or another start."
)


class Degenerate(ArithmeticError):
    """A component of a parameter site has no finite maximiser; the message names both."""

    def __init__(
        self,
        site: str,
        component: str,
        what: str,
        index: tuple[int, ...] = (),
        remedy: str = BY_PRIOR,
    ) -> None:
        self.site, self.component, self.index = site, component, index
        where = f"component {component} of site '{site}'" if component else f"site '{site}'"
        super().__init__(f"{where} {what}; {remedy}")


@dataclass(frozen=True)
class Judged:
    """The parameter that is judged: its site and kind, its rows, and whether a prior counts."""

    site: str
    kind: str
    rows_shape: torch.Size
    objective: str
    has_prior: bool


def check_maximiser(judged: Judged, coefficients: list[Tensor], least: Tensor) -> None:
    """Raises ``Degenerate`` if coefficients have no finite, interior maximiser.

    Args:
        judged: The family parameter.
        coefficients: Those of every row, prior included.
        least: The variance of every row (of a matrix: of each column) that is as good as none.
    """
    empty, bad, what = _judge(judged, coefficients, least)
    for wrong, message in ((empty, _EMPTIED), (bad, what)):
        if bool(wrong.any()):
            row = int(wrong.reshape(-1).nonzero()[0])
            shape = judged.rows_shape or (1,)
            index = [int(i) for i in torch.unravel_index(torch.tensor(row), shape)]
            name = str(index[0]) if len(index) == 1 else str(tuple(index))
            raise Degenerate(judged.site, name, message, tuple(index), _remedy(judged, message))


def _remedy(judged: Judged, what: str) -> str:
    if what == _UNBOUNDED:
        return (
            "give its prior concentrations of at least 1, or use objective='mle' or "
            "mode='unconstrained'."
        )
    if judged.objective == "mle":
        return BY_PRIOR
    if what == _EMPTIED:
        return "give it a proper prior, fewer components, or another start."
    return BETTER_PRIOR


def _judge(judged: Judged, coefficients: list[Tensor], least: Tensor) -> tuple[Tensor, Tensor, str]:
    tiny = 1e-250
    match judged.kind:
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
            if bool((a < 0).any()):
                return empty, a < 0, _UNBOUNDED
            return empty, (b <= tiny) | (b <= least * a), _COLLAPSED
        case "location":
            _, precision = coefficients
            return precision <= tiny, ~torch.isfinite(precision), _COLLAPSED
        case "vector":
            _, precision = coefficients
            empty = precision.diagonal(dim1=-2, dim2=-1).amax(-1) <= tiny
            return empty, ~torch.isfinite(precision).flatten(1).all(-1), _COLLAPSED
        case _:
            n, scatter = coefficients
            return n <= tiny, _is_singular(judged, n, scatter, least), _SINGULAR


_EMPTIED = "has emptied: no observation belongs to it"


_COLLAPSED = (
    "has collapsed: its variance has shrunk to (almost) nothing, where the likelihood has no bound"
)


_SINGULAR = (
    "has collapsed: in a direction its variance has shrunk to (almost) nothing, where the "
    "likelihood has no bound (columns that determine each other do that to every component)"
)


_UNBOUNDED = "has a prior density without bound (concentration below 1) and too few observations"


def _is_singular(judged: Judged, n: Tensor, scatter: Tensor, least: Tensor) -> Tensor:
    """Whether a covariance has a direction without spread, relative to its own columns.

    The squared pivots of a Cholesky factor are the variances of each coordinate given those
    before it; one that is next to nothing means a direction without spread. A prior that adds to
    the scatter has a say in what is next to nothing: then only rounding is.
    """
    factor, failed = torch.linalg.cholesky_ex(scatter)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    share = ROUNDED if judged.has_prior else SINGULAR
    none = share * scatter.diagonal(dim1=-2, dim2=-1) + n[:, None] * least
    singular: Tensor = (failed != 0) | ~(pivots > none).all(-1)
    return singular


def near_singular(
    parameters: Mapping[str, Parameter], params: Mapping[str, Tensor]
) -> tuple[str, float] | None:
    """The matrix parameter with the largest condition number, if that eats up half the digits."""
    found = {
        name: float(torch.linalg.cond(params[name].detach()).nan_to_num(nan=torch.inf).max())
        for name, parameter in parameters.items()
        if parameter.support in MATRICES and params[name].numel()
    }
    worst = max(found, key=lambda name: found[name], default=None)
    return None if worst is None or found[worst] < ILL_CONDITIONED else (worst, found[worst])


def uncertainty(parameters: Mapping[str, Parameter], params: Mapping[str, Tensor]) -> float:
    """By how much the objective is uncertain: a matrix is known to the last digit of its entries.

    The last digit of a matrix of condition number ``c`` moves its log determinant by ``c`` times
    the precision of a number.
    """
    found = near_singular(parameters, params)
    return 0.0 if found is None else found[1] * torch.finfo(torch.float64).eps


def check_scales(statistics: Statistics, params: Mapping[str, Tensor], objective: str) -> None:
    """Raises ``Degenerate`` if a scale found numerically has shrunk to nothing."""
    for group, _ in statistics.sums.values():
        family_parameter = group.parameters[-1]
        if family_parameter.kind != "rate" or family_parameter.table is None:
            continue
        least = group.resolution()
        if least is None:
            continue
        collapsed = group.parameter_values(params)[-1] * least > 1.0
        if bool(collapsed.any()):
            row = int(group.cells[collapsed.nonzero()[0, 0], -1])
            remedy = BY_PRIOR if objective == "mle" else BETTER_PRIOR
            raise Degenerate(family_parameter.sources[0], str(row), _COLLAPSED, (), remedy)


def emptied_states(
    statistics: Statistics, latents: Mapping[str, TieKey], chain: Container[str]
) -> str:
    """A sentence about the first latent state that (almost) no observation belongs to, or none.

    Args:
        statistics: Expected statistics at the end of a fit.
        latents: The group of every latent that has one; its counts are those of the states.
        chain: Latents that are steps of a chain, whose counts are taken together.
    """
    counts: dict[str, Tensor] = {}
    seen: set[tuple[str, TieKey]] = set()
    for name, key in latents.items():
        label = (base_name(name) or name) if name in chain else name
        if (label, key) in seen or not isinstance(statistics.sums[key][0].family, Categorical):
            continue
        seen.add((label, key))
        total = statistics.sums[key][1].sum(0)
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
    for group, sums in statistics.sums.values():
        if not isinstance(group.family, Superposed):
            continue
        idle = torch.zeros(int(group.cells.max()) + 1, dtype=torch.bool)
        idle[group.cells[:, 0]] = (sums == 0.0).all(-1)
        sizes = [statistics.params[name].numel() for name in group.parameters[0].sources]
        for name, entries in zip(group.parameters[0].sources, idle.split(sizes), strict=True):
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
