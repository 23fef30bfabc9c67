"""Which update each parameter has: in closed form, numerical, or none; chosen once for a plan."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.families.conjugacy import pseudo_statistics
from ember.inference.families.exponential_form import FamilyParameter
from ember.inference.families.kinds import Kind
from ember.inference.families.links import IDENTITY, Link
from ember.inference.parameters.argument_map import row_count
from ember.inference.parameters.computed_rows import ComputedRows
from ember.inference.parameters.parameter import Parameter
from ember.inference.parameters.superposed_rate import SuperposedRate
from ember.inference.parameters.supports import shown
from ember.inference.plan.plan import Plan
from ember.inference.plan.priors import PriorSite
from ember.inference.reading.site import Site

__all__ = ["How", "Update", "Usage", "check_settable", "tied_factors_of", "updates"]


class How(StrEnum):
    """How an update is made.

    "In support" is numerical where the closed form would leave the support that the model declares.
    """

    CLOSED = "closed form"
    IN_SUPPORT = "closed form in support"
    NUMERICAL = "numerical"
    FIXED = "fixed"


@dataclass(frozen=True)
class Usage:
    """What a parameter feeds: a parameter of a family, in the likelihood or in another's prior."""

    where: TieKey
    prior: str | None
    position: int
    start: int


@dataclass(frozen=True)
class Update:
    """How the M-step moves one parameter: in closed form, numerically, or not at all.

    Only a closed form has a kind of parameter, and a link to it; coefficients of one linear
    predictor are updated as a block.
    """

    name: str
    how: How
    reason: str
    kind: Kind | None = None
    link: Link = IDENTITY
    usages: tuple[Usage, ...] = ()
    block: tuple[str, ...] = ()

    @property
    def goes_first(self) -> bool:
        """Whether others are found given this one: a location before its scale."""
        return self.kind is not None and self.kind.goes_first

    @property
    def is_joint(self) -> bool:
        """Whether it is one of several parameters that are updated together."""
        return self.kind is not None and self.kind.is_joint


def updates(plan: Plan) -> tuple[Update, ...]:
    """The update of every parameter, in the order in which the M-step takes them."""
    return plan.once(_updates)


def _updates(plan: Plan) -> tuple[Update, ...]:
    chosen = [_choose(plan, parameter) for parameter in plan.structure.parameters.values()]
    chosen = _join_coefficients(plan, chosen)
    return tuple(sorted(chosen, key=lambda update: not update.goes_first))


def _join_coefficients(plan: Plan, chosen: list[Update]) -> list[Update]:
    """Joins the updates of coefficients that share a linear predictor; all or none is closed."""
    by_name = {update.name: update for update in chosen}
    for block in _blocks(plan, chosen):
        other = [name for name in sorted(block) if not by_name[name].is_joint]
        members = tuple(name for name in by_name if name in block)
        for name in block:
            if not other:
                by_name[name] = dataclasses.replace(by_name[name], block=members)
            elif by_name[name].is_joint:
                reason = f"shares a weighted sum with '{other[0]}', which has no closed form"
                by_name[name] = Update(name, How.NUMERICAL, reason)
    return list(by_name.values())


def _blocks(plan: Plan, chosen: list[Update]) -> list[set[str]]:
    """The parameters that share linear predictors, with each other or by way of others."""
    blocks: list[set[str]] = []
    for update in chosen:
        if update.is_joint:
            names = {name for u in update.usages for name in _fed(plan, u).sources}
            touching = [block for block in blocks if block & names]
            blocks = [block for block in blocks if not block & names]
            blocks.append(names.union(*touching))
    return blocks


def _choose(plan: Plan, parameter: Parameter) -> Update:
    """The update of one parameter, as if it were alone."""
    name, support = parameter.name, parameter.support
    opaque = [site for site in plan.opaque_sites() if name in plan.dependencies(site)]
    if opaque:
        reason = plan.site(opaque[0]).reason
        return Update(name, How.NUMERICAL, f"site '{opaque[0]}': {reason}")
    usages = tuple(_usages(plan, name))
    if not usages:
        if plan.objective == "mle" or not parameter.has_prior:
            return Update(name, How.FIXED, "does not enter the likelihood")
        return Update(name, How.NUMERICAL, "enters no factor but its own prior")
    for usage in usages:
        table = _fed(plan, usage).table
        if isinstance(table, ComputedRows):
            return Update(name, How.NUMERICAL, table.reason)
    first = _fed(plan, usages[0])
    obstacle = _clash(plan, usages) or _obstacle(plan, parameter, first.kind, first.link)
    if obstacle:
        return Update(name, How.NUMERICAL, obstacle)
    reason = _reason(plan, name, first.kind, first.link)
    if first.kind.natural(support, first.link):
        return Update(name, How.CLOSED, reason, first.kind, first.link, usages)
    reason += f"; numerical where it leaves the support {shown(support)}"
    return Update(name, How.IN_SUPPORT, reason, first.kind, first.link, usages)


def _clash(plan: Plan, usages: tuple[Usage, ...]) -> str:
    """Why the coefficients of all that a parameter feeds do not add up, if they do not."""
    if len({(fed.kind, fed.link.name) for fed in (_fed(plan, usage) for usage in usages)}) > 1:
        return "it enters two sites in ways that do not combine"
    if len({(usage.where, usage.prior) for usage in usages}) < len(usages):
        return "it feeds two arguments of one site"
    return ""


def _obstacle(plan: Plan, parameter: Parameter, kind: Kind, link: Link) -> str:
    """Why the prior of a parameter leaves it without a closed form, if it does."""
    prior = plan.priors.get(parameter.name)
    if prior is None:
        return ""
    if not _is_conjugate(plan, prior.site, kind, link):
        family = type(prior.site.density.base).__name__ if prior.site.density else "its prior"
        fed = ", ".join(_arguments(plan, parameter.name))
        return f"{family} prior is not conjugate to {fed}"
    if plan.unconstrained and not kind.stays_closed(parameter.support, link):
        return f"the Jacobian of {shown(parameter.support)}"
    return ""


def _reason(plan: Plan, name: str, kind: Kind, link: Link) -> str:
    """Why a parameter has a closed form."""
    prior, fed = plan.priors.get(name), ", ".join(_arguments(plan, name))
    if prior is None:
        return f"exponential family: {fed}"
    reason = f"conjugate: {fed}"
    if prior.site.density is not None:
        reason += f" with {type(prior.site.density.base).__name__} prior"
    return f"{reason}, times the Jacobian" if plan.unconstrained and kind.jacobian(link) else reason


def _is_conjugate(plan: Plan, prior: Site, kind: Kind, link: Link) -> bool:
    if prior.density is None:
        return False
    start = plan.structure.start
    added = pseudo_statistics(kind, link, prior.density.distribution(start))
    if plan.unconstrained and added == [] and kind.jacobian(link):
        return False  # a flat prior has no coefficients to which the Jacobian could add
    return added is not None


def _arguments(plan: Plan, name: str) -> list[str]:
    """The arguments of distributions that a parameter feeds, for the table."""
    fed = set[str]()
    for site in plan.factor_and_prior_names():
        density = plan.site(site).density
        if density is None:
            continue
        for argument, source in density.maps.values():
            if name in source.sources:
                how = " (superposition)" if isinstance(source, SuperposedRate) else ""
                fed.add(f"{type(density.base).__name__}.{argument}{how}")
    return sorted(fed)


def _usages(plan: Plan, name: str) -> list[Usage]:
    """Where a parameter feeds parameters of families, in the likelihood and in priors."""
    every: list[tuple[str | None, TiedFactors]] = [(None, tied) for tied in plan.tied.values()]
    every += [(n, prior.tied) for n, prior in plan.priors.items() if prior.tied is not None]
    return [
        Usage(tied.key, prior, position, _first_row(plan, fed, name))
        for prior, tied in every
        for position, fed in enumerate(tied.parameters)
        if name in fed.sources
    ]


def _first_row(plan: Plan, fed: FamilyParameter, name: str) -> int:
    """The row of a table at which the rows of one of its sources begin."""
    assert fed.table is not None
    before = fed.sources[: fed.sources.index(name)]
    shapes = [plan.structure.parameters[source].shape for source in before]
    return sum(row_count(shape, fed.table.event_dim) for shape in shapes)


class Tying(Protocol):
    """What has tied factors and priors: a plan, or the part of it that the M-step knows."""

    @property
    def tied(self) -> Mapping[TieKey, TiedFactors]:
        """The sites that read the same entries of parameters, pooled."""

    @property
    def priors(self) -> Mapping[str, PriorSite]:
        """The prior of each parameter that counts in the objective."""


def tied_factors_of(plan: Tying, usage: Usage) -> TiedFactors:
    """The tied factors, or the prior, in which a parameter is used."""
    if usage.prior is None:
        return plan.tied[usage.where]
    tied = plan.priors[usage.prior].tied
    assert tied is not None
    return tied


def _fed(plan: Plan, usage: Usage) -> FamilyParameter:
    """The parameter of a family that is fed."""
    return tied_factors_of(plan, usage).parameters[usage.position]


def check_settable(plan: Plan) -> None:
    """Refuses parameters of torch modules that the model reads past Pyro's back.

    A ``PyroModule`` announces an ordinary ``torch.nn.Parameter`` to Pyro but goes on to use its
    own value, so nobody can set it from outside.

    Raises:
        ValueError: Naming the parameter and the remedy.
    """
    for update in updates(plan):
        parameter = plan.structure.parameters[update.name]
        if update.how is How.FIXED and parameter.is_module_parameter:
            raise ValueError(
                f"parameter '{update.name}' is an ordinary torch.nn.Parameter, which cannot be set "
                "from outside; make it a pyro.nn.PyroParam, for instance "
                "module.weight = PyroParam(module.weight.detach().clone())."
            )
