"""Detects components that collapse or empty, before they turn into NaN."""

from collections.abc import Container, Mapping

import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.factors.tied import TieKey
from ember.inference.families.discrete import Categorical
from ember.inference.families.superposition import Superposed
from ember.inference.families.verdict import Flaw, Verdict
from ember.inference.parameters.parameter import Parameter
from ember.inference.plan.statistics import Statistics
from ember.inference.reading.sequences import base_name

__all__ = [
    "Degenerate",
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


def check_maximiser(site: str, rows: torch.Size, verdict: Verdict, objective: str) -> None:
    """Raises ``Degenerate`` if a row of a parameter has no finite, interior maximiser.

    Args:
        site: The parameter.
        rows: The shape of its rows.
        verdict: Of its kind.
        objective: What is maximised, "map" or "mle".
    """
    if not bool((verdict.empty | verdict.flawed).any()):
        return
    for wrong, flaw in ((verdict.empty, Flaw.EMPTIED), (verdict.flawed, verdict.flaw)):
        if bool(wrong.any()):
            row = wrong.reshape(-1).nonzero()[0, 0]
            index = tuple(int(i) for i in torch.unravel_index(row, rows or (1,)))
            name = str(index[0]) if len(index) == 1 else str(index)
            raise Degenerate(site, name, flaw.value, index, _remedy(flaw, objective))


def _remedy(flaw: Flaw, objective: str) -> str:
    if flaw is Flaw.UNBOUNDED:
        return (
            "give its prior concentrations of at least 1, or use objective='mle' or "
            "mode='unconstrained'."
        )
    if objective == "mle":
        return BY_PRIOR
    if flaw is Flaw.EMPTIED:
        return "give it a proper prior, fewer components, or another start."
    return BETTER_PRIOR


def near_singular(
    parameters: Mapping[str, Parameter], params: Mapping[str, Tensor]
) -> tuple[str, float] | None:
    """The matrix parameter with the largest condition number, if that eats up half the digits."""
    conditions = {
        name: float(torch.linalg.cond(params[name].detach()).nan_to_num(nan=torch.inf).max())
        for name, parameter in parameters.items()
        if parameter.support in MATRICES and params[name].numel()
    }
    worst = max(conditions, key=lambda name: conditions[name], default=None)
    if worst is None or conditions[worst] < ILL_CONDITIONED:
        return None
    return worst, conditions[worst]


def uncertainty(parameters: Mapping[str, Parameter], params: Mapping[str, Tensor]) -> float:
    """By how much the objective is uncertain: a matrix is known to the last digit of its entries.

    The last digit of a matrix of condition number ``c`` moves its log determinant by ``c`` times
    the precision of a number.
    """
    worst = near_singular(parameters, params)
    return 0.0 if worst is None else worst[1] * torch.finfo(torch.float64).eps


def check_scales(statistics: Statistics, params: Mapping[str, Tensor], objective: str) -> None:
    """Raises ``Degenerate`` if a scale found numerically has shrunk to nothing."""
    for tied, _ in statistics.sums.values():
        scale, least = tied.parameters[-1], tied.resolution
        if scale.table is None or least is None:
            continue
        collapsed = scale.kind.collapsed(tied.parameter_values(params)[-1], least)
        if bool(collapsed.any()):
            row = int(tied.cells[collapsed.nonzero()[0, 0], -1])
            remedy = BY_PRIOR if objective == "mle" else BETTER_PRIOR
            raise Degenerate(scale.sources[0], str(row), Flaw.COLLAPSED.value, (), remedy)


def emptied_states(
    statistics: Statistics, latents: Mapping[str, TieKey], chain: Container[str]
) -> str:
    """A sentence about the first latent state that (almost) no observation belongs to, or none.

    Args:
        statistics: Expected statistics at the end of a fit.
        latents: The tied factors of every latent that has them, which count its states.
        chain: Latents that are steps of a chain, whose counts are taken together.
    """
    counts: dict[str, Tensor] = {}
    counted: set[tuple[str, TieKey]] = set()
    for name, key in latents.items():
        tied, sums = statistics.sums[key]
        label = (base_name(name) or name) if name in chain else name
        if (label, key) in counted or not isinstance(tied.family, Categorical):
            continue
        counted.add((label, key))
        total = sums.sum(0)
        if label not in counts:
            counts[label] = total
        elif counts[label].shape == total.shape:
            counts[label] = counts[label] + total
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
    for tied, sums in statistics.sums.values():
        if not isinstance(tied.family, Superposed):
            continue
        idle = torch.zeros(int(tied.cells.max()) + 1, dtype=torch.bool)
        idle[tied.cells[:, 0]] = (sums == 0.0).all(-1)
        sizes = [statistics.params[name].numel() for name in tied.parameters[0].sources]
        for name, entries in zip(tied.parameters[0].sources, idle.split(sizes), strict=True):
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
