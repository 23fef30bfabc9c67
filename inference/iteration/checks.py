"""Checks that need the plan: enough rows for what is asked, and no latent left in disguise."""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.families.conjugate_latents import conjugate_family
from ember.inference.numerics.distribution import Distribution
from ember.inference.plan.ownership import sets_of_parameters
from ember.inference.plan.plan import Plan
from ember.inference.reading.checks.cut_gradients import cut_parameters
from ember.inference.reading.gaussian.candidates import is_gaussian
from ember.inference.reading.held import prior_sources
from ember.inference.reading.matching.arguments import probe_values
from ember.inference.reading.nodes import can_be_on_nodes
from ember.inference.reading.unwrapping import unwrap

__all__ = [
    "check_local_parameters",
    "check_rows",
    "integrable",
    "local_parameters",
    "warn_of_cuts",
    "warn_of_unlearnt",
]


def check_rows(plan: Plan) -> None:
    """Refuses fewer than two rows, and latents with more states of their own than rows.

    States that have no parameters of their own, such as the values of a grid, may be any number.

    Raises:
        ValueError: Naming the plate or the latent site.
    """
    if plan.row is None:
        return
    rows = plan.sizes[plan.row]
    sequential = plan.structure.steps or plan.chains
    if rows < 2 and not sequential:  # one sequence has many steps
        raise ValueError(
            f"the data have {rows} row; estimating the parameters of a model needs at least 2: "
            "pass more rows."
        )
    for name, symbol in plan.latent_symbols.items():
        states, plates = plan.sizes[symbol], plan.sites[name].plates
        places = math.prod(plan.sizes[plate] for plate in plates)
        stepwise = name in plan.structure.steps or name in plan.chains
        if plan.row not in plates or states <= places or stepwise or name in plan.on_nodes:
            continue
        if sets_of_parameters(plan, name) > places:
            raise ValueError(
                f"latent site '{name}' has {states} states but occurs in only {places} rows; "
                "use fewer components, or pass more rows."
            )


def local_parameters(plan: Plan, integrate: Mapping[str, Any]) -> dict[str, str]:
    """Continuous sites with a value for each row that are estimated with what they share a factor.

    Such a site (a factor score, a random effect) is a latent variable: its joint mode with the
    parameters it depends on is biased, and often unbounded. ``integrate={"site": None}`` says
    that the joint mode is wanted all the same.

    Returns:
        For each such site the parameter that it shares a factor with.
    """
    structure = plan.structure
    if plan.row is None:
        return {}
    local = [n for n in structure.parameters if n not in integrate and _is_of_rows(plan, n)]
    found: dict[str, str] = {}
    for name in local:
        if name in plan.priors:
            others: frozenset[str] | set[str] = plan.dependencies(name) - set(local)
        else:  # maximum likelihood leaves its density out, but it is no less a random effect
            start = structure.start
            others = prior_sources(structure, start, name) - set(local)
        for site in structure.factor_names:
            used = plan.dependencies(site) if not others else frozenset()
            if name in used:
                others = used - set(local)
        if others:
            found[name] = sorted(others)[0]
    return found


def check_local_parameters(plan: Plan, local: Mapping[str, str], why: str) -> None:
    """Refuses a plan that would estimate latent variables.

    Args:
        plan: The plan.
        local: What ``local_parameters`` finds.
        why: Why they cannot be integrated.

    Raises:
        ValueError: Naming the first of them and what it shares a factor with.
    """
    for name, other in local.items():
        grid = ""
        if can_be_on_nodes(_priors_of(plan, [name])[name]):
            grid = f"pass integrate={{'{name}': 'quadrature'}} to integrate it on a grid of nodes, "
        raise ValueError(
            f"continuous site '{name}' has one value for each row and shares a factor with "
            f"'{other}', so it is a latent variable, but {why}; {grid}write the marginal "
            f"distribution instead, or pass integrate={{'{name}': None}} to estimate the joint "
            "mode."
        )


def integrable(plan: Plan, names: Iterable[str]) -> dict[str, str] | None:
    """How parameters can be integrated exactly by the kinds of their priors; None if one cannot."""
    how: dict[str, str] = {}
    for name, fn in _priors_of(plan, names).items():
        if is_gaussian(fn):
            how[name] = "gaussian"
        elif conjugate_family(unwrap(fn).base) is not None:
            how[name] = "conjugate"
        else:
            return None
    return how


def _priors_of(plan: Plan, names: Iterable[str]) -> dict[str, Distribution]:
    """The distributions of parameter sites, at the start."""
    start = plan.structure.start
    nodes = plan.structure.run(start).nodes
    return {name: nodes[name]["fn"] for name in names}


def _is_of_rows(plan: Plan, name: str) -> bool:
    """Whether a sample site has a value for each row: by its plates, or by which row reads what.

    Where an entry feeds a single row, the gradient of the rows' log likelihoods, weighted by 1, 2,
    3, ..., is in it that row's number times the gradient of their plain sum.
    """
    parameter = plan.structure.parameters[name]
    assert plan.row is not None
    rows = plan.sizes[plan.row]
    if not parameter.has_prior or parameter.shape.numel() < rows or rows < 2:
        return False
    if plan.plate_names[plan.row] in parameter.plates:
        return True
    at = probe_values(plan.structure, 0)
    try:
        with torch.enable_grad():
            value = at[name].requires_grad_()
            by_row = LogEvidence.of(plan).rows(at)
            if not by_row.requires_grad:
                return False
            numbers = torch.arange(1.0, rows + 1.0)
            (plain,) = torch.autograd.grad(by_row.sum(), value, retain_graph=True)
            (numbered,) = torch.autograd.grad((numbers * by_row).sum(), value)
    except (RuntimeError, ArithmeticError, ValueError):
        return False  # the model cannot be evaluated at random parameters
    reader = (numbered / plain)[plain != 0.0]
    whole = (reader - reader.round()).abs() < 1e-6 * reader.abs()
    return bool(whole.all()) and len(reader.round().unique()) == rows


def warn_of_unlearnt(plan: Plan, integrate: Mapping[str, Any], stacklevel: int) -> None:
    """Warns of parameters that only the prior of others reads, where no prior counts.

    The scale of group effects is such a one: the effects are then estimated one by one, without
    any prior, and nothing is learnt of their scale.
    """
    if plan.objective != "mle":
        return
    structure = plan.structure
    used = {source for name in structure.factor_names for source in plan.dependencies(name)}
    idle = {n for n, p in structure.parameters.items() if not p.has_prior} - used
    start = structure.start
    drawn = [n for n, p in structure.parameters.items() if p.has_prior and n not in integrate]
    for name in drawn if idle else ():
        read = sorted(prior_sources(structure, start, name) & idle)
        if read:
            how = "Use"
            if can_be_on_nodes(_priors_of(plan, [name])[name]):
                how = f"Integrate it as a latent, integrate={{'{name}': 'quadrature'}}, use"
            warnings.warn(
                f"parameter '{read[0]}' stays where it starts: only the prior of '{name}' reads "
                f"it, and maximum likelihood counts no prior. {how} objective='map' for the joint "
                f"mode, or say integrate={{'{name}': None}} if that is meant.",
                RuntimeWarning,
                stacklevel=stacklevel + 1,
            )
            return


def warn_of_cuts(plan: Plan, stacklevel: int) -> None:
    """Warns of parameters that act by their values, but are cut off from the gradient."""
    if plan.reached is None:
        return
    names = [n for n in plan.factor_and_prior_names() if not plan.is_computed(n)]
    cut = cut_parameters(plan.structure, {n: plan.site(n) for n in names}, plan.reached)
    for name, site in cut.items():
        asked = plan.site(site).density is None
        what = "it is not estimated there" if asked else "it is estimated there all the same"
        warnings.warn(
            f"parameter '{name}' is cut off from the gradient of site '{site}' by .detach(), "
            f".item() or torch.no_grad(): {what}; use it as it is, or pass a constant instead.",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )
