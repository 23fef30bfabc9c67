"""Checks that need the plan: enough rows for what is asked, and no latent left in disguise."""

import math
from collections.abc import Mapping
from typing import Any

from ember.inference.maximisation import updates
from ember.inference.ownership import sets_of_parameters
from ember.inference.plan import Plan

__all__ = ["check_local_parameters", "check_rows", "check_settable"]


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
        if plan.row not in plates or states <= places or stepwise:
            continue
        if sets_of_parameters(plan, name) > places:
            raise ValueError(
                f"latent site '{name}' has {states} states but occurs in only {places} rows; "
                "use fewer components, or pass more rows."
            )


def check_local_parameters(plan: Plan, integrate: Mapping[str, Any]) -> None:
    """Refuses a continuous value for each row that is estimated together with shared parameters.

    Such a site (a factor score, a random effect) is a latent variable: its joint mode with the
    parameters it depends on is biased, and often unbounded. ``integrate={"site": None}`` says
    that the joint mode is wanted all the same.

    Raises:
        ValueError: Naming the site and what it shares a factor with.
    """
    structure = plan.structure
    if plan.row is None:
        return
    row = plan.notes["plate_names"][plan.row]
    local = [n for n, p in structure.parameters.items() if row in p.plates and n not in integrate]
    for name in local:
        if name in plan.priors and (others := plan.dependencies(name) - set(local)):
            raise ValueError(_is_latent(name, sorted(others)[0]))
        for site in structure.factor_names:
            used = plan.dependencies(site)
            if name in used and (others := used - set(local)):
                raise ValueError(_is_latent(name, sorted(others)[0]))


def _is_latent(name: str, other: str) -> str:
    return (
        f"continuous site '{name}' has one value for each row and shares a factor with '{other}', "
        "so it is a latent variable, which this version cannot integrate; write the marginal "
        f"distribution instead, or pass integrate={{'{name}': None}} to estimate the joint mode."
    )


def check_settable(plan: Plan) -> None:
    """Refuses parameters of torch modules that the model reads past Pyro's back.

    A ``PyroModule`` announces an ordinary ``torch.nn.Parameter`` to Pyro but goes on to use its
    own value, so nobody can set it from outside.

    Raises:
        ValueError: Naming the parameter and the remedy.
    """
    for update in updates(plan):
        parameter = plan.structure.parameters[update.name]
        if update.how == "fixed" and parameter.is_module_parameter:
            raise ValueError(
                f"parameter '{update.name}' is an ordinary torch.nn.Parameter, which cannot be set "
                "from outside; make it a pyro.nn.PyroParam, for instance "
                "module.weight = PyroParam(module.weight.detach().clone())."
            )
