"""Which update each parameter has: in closed form, numerical, or none; chosen once for a plan."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.families.conjugacy import pseudo_statistics
from ember.inference.families.kinds import Kind
from ember.inference.families.links import IDENTITY, Link
from ember.inference.parameters.parameter import Parameter
from ember.inference.parameters.superposed_rate import SuperposedRate
from ember.inference.parameters.supports import shown
from ember.inference.plan.plan import Plan
from ember.inference.plan.priors import PriorSite

__all__ = ["IN_SUPPORT", "Update", "Usage", "check_settable", "tied_factors_of", "updates"]


IN_SUPPORT = "closed form in support"
CLOSED = ("closed form", IN_SUPPORT)


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

    ``how`` is "closed form", "numerical", "fixed", or "closed form in support": numerical where
    the closed form would leave the support that the model declares. Only a closed form has a kind.
    """

    name: str
    how: str
    reason: str
    kind: Kind | None = None
    link: Link = IDENTITY
    usages: tuple[Usage, ...] = ()
    together: tuple[str, ...] = ()

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
    found = [_choose(plan, parameter) for parameter in plan.structure.parameters.values()]
    found = _join_coefficients(plan, found)
    found.sort(key=lambda update: not update.goes_first)
    return tuple(found)


def _join_coefficients(plan: Plan, found: list[Update]) -> list[Update]:
    """Joins the updates of coefficients that share a linear predictor; all or none is closed."""
    by_name = {update.name: update for update in found}
    blocks: list[set[str]] = []
    for update in found:
        if update.is_joint:
            names = {
                s
                for u in update.usages
                for s in tied_factors_of(plan, u).parameters[u.position].sources
            }
            touching = [block for block in blocks if block & names]
            blocks = [block for block in blocks if not block & names]
            blocks.append(names.union(*touching))
    for block in blocks:
        other = [n for n in sorted(block) if not by_name[n].is_joint]
        for name in block:
            update = by_name[name]
            if other and update.is_joint:
                reason = f"shares a weighted sum with '{other[0]}', which has no closed form"
                by_name[name] = Update(name, "numerical", reason)
            elif not other:
                members = tuple(n for n in by_name if n in block)
                by_name[name] = dataclasses.replace(update, together=members)
    return list(by_name.values())


def _choose(plan: Plan, parameter: Parameter) -> Update:
    name = parameter.name
    usages = tuple(_usages(plan, name))
    opaque = [site for site in plan.opaque_sites() if name in plan.dependencies(site)]
    if opaque:
        reason = plan.site(opaque[0]).reason
        return Update(name, "numerical", f"site '{opaque[0]}': {reason}")
    if not usages:
        if plan.objective == "mle" or not parameter.has_prior:
            return Update(name, "fixed", "does not enter the likelihood")
        return Update(name, "numerical", "enters no factor but its own prior")
    family_parameters = [
        tied_factors_of(plan, usage).parameters[usage.position] for usage in usages
    ]
    first = family_parameters[0]
    kind, link = first.kind, first.link
    if any((p.kind, p.link.name) != (kind, link.name) for p in family_parameters):
        return Update(name, "numerical", "it enters two sites in ways that do not combine")
    if len({(usage.where, usage.prior) for usage in usages}) < len(usages):
        return Update(name, "numerical", "it feeds two arguments of one site")
    sites = plan.factor_and_prior_names()
    fed = sorted({argument for site in sites for argument in _arguments(plan, site, name)})
    prior = plan.priors.get(name)
    if prior is not None and not _is_conjugate(plan, name, kind, link):
        family = type(prior.site.density.base).__name__ if prior.site.density else "its prior"
        return Update(name, "numerical", f"{family} prior is not conjugate to {', '.join(fed)}")
    reason = f"conjugate: {', '.join(fed)}" if prior else f"exponential family: {', '.join(fed)}"
    if prior is not None and prior.site.density is not None:
        reason += f" with {type(prior.site.density.base).__name__} prior"
    if prior is not None and plan.unconstrained:
        if not kind.stays_closed(parameter.support, link):
            return Update(name, "numerical", f"the Jacobian of {shown(parameter.support)}")
        reason += ", times the Jacobian" if kind.jacobian(link) else ""
    if kind.natural(parameter.support, link):
        return Update(name, "closed form", reason, kind, link, usages)
    reason += f"; numerical where it leaves the support {shown(parameter.support)}"
    return Update(name, IN_SUPPORT, reason, kind, link, usages)


def _arguments(plan: Plan, site: str, name: str) -> list[str]:
    """The arguments of a site's distribution that a parameter feeds, for the table."""
    density = plan.site(site).density
    if density is None:
        return []
    family = type(density.base).__name__
    return [
        f"{family}.{arg}{' (superposition)' if isinstance(found, SuperposedRate) else ''}"
        for arg, found in density.maps.values()
        if name in found.sources
    ]


def _usages(plan: Plan, name: str) -> list[Usage]:
    groups: list[tuple[TieKey, str | None, TiedFactors]] = [
        (key, None, tied) for key, tied in plan.tied.items()
    ]
    groups += [(p.tied.key, n, p.tied) for n, p in plan.priors.items() if p.tied is not None]
    found = []
    for where, prior, group in groups:
        for i, family_parameter in enumerate(group.parameters):
            if name in family_parameter.sources:
                assert family_parameter.table is not None
                start = 0
                for source in family_parameter.sources:
                    if source == name:
                        break
                    shape = plan.structure.parameters[source].shape
                    start += shape[: len(shape) - family_parameter.table.event_dim].numel()
                found.append(Usage(where, prior, i, start))
    return found


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


def _is_conjugate(plan: Plan, name: str, kind: Kind, link: Link) -> bool:
    site = plan.priors[name].site
    if site.density is None:
        return False
    start = {n: p.start for n, p in plan.structure.parameters.items()}
    found = pseudo_statistics(kind, link, site.density.distribution(start))
    if plan.unconstrained and found == [] and kind.jacobian(link):
        return False  # a flat prior has no coefficients to which the Jacobian could add
    return found is not None


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
