"""The plan as a table that an analyst can read."""

from collections.abc import Container

import pandas as pd

from ember.inference.families.superposition import SuperposedForm
from ember.inference.maximisation.updates import Update, updates
from ember.inference.parameters.computed_rows import ComputedRows
from ember.inference.plan.plan import Plan
from ember.inference.reading.sequences import base_name, members
from ember.inference.reading.site import Site

__all__ = ["Explanation", "explain"]


COLUMNS = ("site", "role", "plates", "E-step", "M-step", "why")


class Explanation(pd.DataFrame):
    """A data frame with a row for every site; prints in full."""

    @property
    def _constructor(self) -> type["Explanation"]:
        return Explanation

    def __str__(self) -> str:
        texts = [[str(value) for value in column] for column in (self.columns, *self.to_numpy())]
        widths = [max(len(text) for text in column) for column in zip(*texts, strict=True)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in texts
        ]
        return "\n".join(lines)

    __repr__ = __str__


def explain(plan: Plan) -> Explanation:
    """Lists every site: its role and plates, how it is integrated or updated, and why."""
    rows = [_parameter_row(plan, update) for update in updates(plan)]
    rows += [_held_row(plan, name) for name in plan.structure.held]
    starts = {c.initial for c in (*plan.structure.chains, *plan.structure.gaussian_chains)}
    rows += [_factor_row(plan, name) for name in plan.sites if name not in starts]
    return Explanation(_fold(rows, plan.structure.steps), columns=list(COLUMNS))


def _parameter_row(plan: Plan, update: Update) -> list[str]:
    parameter = plan.structure.parameters[update.name]
    return [
        update.name,
        "parameter" if parameter.has_prior else "parameter (pyro.param)",
        ", ".join(parameter.plates) or "-",
        "-",
        update.how.value,
        update.reason,
    ]


def _held_row(plan: Plan, name: str) -> list[str]:
    plates = ", ".join(plan.structure.plates[name]) or "-"
    return [name, "held", plates, "-", "-", "given by pyro.condition; its prior is a constant"]


def _factor_row(plan: Plan, name: str) -> list[str]:
    site = plan.sites[name]
    if site.slots:
        return _gaussian_row(plan, name)
    if site.conjugate is not None:
        return _conjugate_row(plan, name)
    if site.unit is not None:
        return _unit_row(plan, name)
    latent = name in plan.latent_symbols
    plates = ", ".join(plan.structure.plates[name]) or "-"
    how = "-"
    if latent:
        way = "forward-backward" if name in plan.chains else "summed"
        how = f"{way} over {plan.sizes.get(plan.latent_symbols[name], 1)} states"
    if name in plan.on_nodes:
        how = f"integrated on {plan.structure.nodes[name].shown} nodes"
    if isinstance(site.form, SuperposedForm) and name in plan.compiled:
        rate = site.form.map
        how = f"counts split among {rate.entries} entries"
        statistics = "closed form"
        why = f"superposition: a Poisson rate that is a weighted sum ({rate.operator.how})"
    elif name in plan.compiled and site.form is not None and site.density is not None:
        why = f"sufficient statistics of {type(site.density.base).__name__}"
        statistics = "closed form" if any(s.table for s in site.form.parameters) else "-"
    elif plan.is_computed(name):
        why, statistics = _of_cells(site), "numerical"
    elif site.density is not None:
        statistics, why = "numerical", site.reason
    else:
        statistics, why = "numerical", f"evaluated by the model: {site.reason}"
    why += _gaps(plan, name)
    names = plan.structure.own_names(name)
    label = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
    return [label, "latent" if latent else "observed", plates, how, statistics, why]


def _gaussian_row(plan: Plan, name: str) -> list[str]:
    """A Gaussian latent, or an observed site that reads some."""
    site, structure = plan.sites[name], plan.structure
    assert site.form is not None
    assert site.density is not None
    component = next(c for c in plan.components if site.slots[0].latent in c.latents)
    latent = name in structure.gaussian
    how = f"integrated exactly (Gaussian: {component.description})" if latent else "-"
    if latent and component.states:
        owners = {symbol: owner for owner, symbol in plan.latent_symbols.items()}
        known = " and ".join(f"'{owners[symbol]}'" for symbol, _ in component.states)
        how += f" given {known}"
    others = dict.fromkeys(_base(plan, slot.latent) for slot in site.slots)
    read = " and ".join(f"'{other}'" for other in others if other != _base(plan, name))
    why = f"sufficient statistics of {type(site.density.base).__name__}"
    if latent:
        asked = structure.found.get(name)
        remedy = f"; integrate={{'{name}': None}} makes it a parameter"
        why = f"{asked}{remedy}" if asked else "marked integrate='gaussian'"
        sites = [chain.site for chain in structure.gaussian_chains if chain.latent == name]
        if sites:
            why = f"the states of the chain of site '{sites[0]}'"
    elif read:
        why += f", completed by moments of {read}"
    return [
        name,
        "latent" if latent else "observed",
        ", ".join(structure.plates[name]) or "-",
        how,
        "closed form" if any(parameter.table for parameter in site.form.parameters) else "-",
        why + ("" if latent else _gaps(plan, name)),
    ]


def _base(plan: Plan, name: str) -> str:
    """A site's name without the number of its step."""
    return (base_name(name) if name in plan.structure.steps else None) or name


def _of_cells(site: Site) -> str:
    """How the arguments of a site below a latent on nodes come about."""
    assert site.form is not None
    tables = [p.table for p in site.form.parameters if isinstance(p.table, ComputedRows)]
    arguments = " and ".join(f"'{table.argument}'" for table in tables)
    return f"statistics of each node: {tables[0].shape.numel()} cells of {arguments}"


def _conjugate_row(plan: Plan, name: str) -> list[str]:
    """A latent with a conjugate prior, or a site that reads one."""
    site, structure = plan.sites[name], plan.structure
    slot = site.conjugate
    assert slot is not None
    how, statistics, why = "-", "-", ""
    if site.form is not None and site.density is not None:
        why = f"sufficient statistics of {type(site.density.base).__name__}"
        statistics = "closed form" if any(p.table for p in site.form.parameters) else "-"
    elif plan.dependencies(name):
        statistics, why = "numerical", site.reason
    if slot.is_own:
        how = f"integrated exactly (conjugate: {slot.family.name})"
        marked = "marked integrate='conjugate'"
        if name in structure.found:
            remedy = f"integrate={{'{name}': None}} makes it a parameter"
            marked = f"{structure.found[name]}; {remedy}"
        why = marked + (f"; {why}" if statistics == "numerical" else "")
    else:
        read = f"completed by moments of '{slot.latent}'"
        why = f"{why}, {read}" if why else read
    plates = ", ".join(structure.plates[name]) or "-"
    role = "latent" if slot.is_own else "observed"
    if name in plan.latent_symbols:
        role, how = "latent", f"summed over {plan.sizes.get(plan.latent_symbols[name], 1)} states"
    return [name, role, plates, how, statistics, why + ("" if slot.is_own else _gaps(plan, name))]


def _unit_row(plan: Plan, name: str) -> list[str]:
    """A latent that is integrated unit by unit, or a site that reads some."""
    site, how = plan.sites[name], "-"
    assert site.unit is not None
    read = " and ".join(map(repr, site.unit.latents))
    if site.form is not None and site.density is not None:
        why = f"sufficient statistics of {type(site.density.base).__name__}"
        statistics = "closed form" if any(p.table for p in site.form.parameters) else "-"
    else:
        statistics = "numerical" if plan.dependencies(name) else "-"
        why = f"evaluated at the nodes of {read}" if read else site.reason
    if site.unit.is_own:
        component = next(c for c in plan.units if name in c.latents)
        others = [other for other in component.latents if other != name]
        how = f"integrated on {component.rule.shown(component.dims)} nodes for each unit"
        how += f", with {' and '.join(map(repr, others))}" if others else ""
    plates = ", ".join(plan.structure.plates[name]) or "-"
    role = "latent" if site.unit.is_own else "observed"
    return [
        name,
        role,
        plates,
        how,
        statistics,
        why + ("" if site.unit.is_own else _gaps(plan, name)),
    ]


def _gaps(plan: Plan, name: str) -> str:
    """How much of a site is missing; steps of a chain are counted together."""
    base = base_name(name) if name in plan.structure.steps else None
    steps = members(base, plan.structure.steps) if base else []
    sites = [plan.sites[step] for step in (steps or [name])]
    missing = sum(int(site.missing.sum()) for site in sites if site.missing is not None)
    entries = sum(site.value.numel() for site in sites)
    return f"; {missing} of {entries} entries missing" if missing else ""


def _fold(rows: list[list[str]], steps: Container[str]) -> list[list[str]]:
    """Shows the steps of a chain (state_0, state_1, ...) as one row where they are alike."""
    folded: list[list[str]] = []
    members: dict[tuple[str, ...], list[str]] = {}
    for name, *rest in rows:
        base = (base_name(name) if name in steps else None) or name
        members.setdefault((base, *rest), []).append(name)
    for (_, *rest), names in members.items():
        label = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
        folded.append([label, *rest])
    return folded
