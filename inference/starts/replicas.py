"""One plan for several parameter values at once: every parameter gets a leading dim.

Row ``i`` of a source of a table has a copy for each value: those of a source lie next to each
other, value by value. Cells, priors and updates are moved accordingly, and the closed forms of the
M-step, which work row by row, then update all values together. Statistics are laid out value by
value, ``(R C, P)``.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.factors import Density, Layout, Site
from ember.inference.grouping import group_of
from ember.inference.jacobians import log_jacobian
from ember.inference.maximisation import Update, updates
from ember.inference.plan import Plan, PriorSite
from ember.inference.reading.affine import AffineMap, CoefficientTable
from ember.inference.reading.parameter_maps import ArgumentMap, Table
from ember.inference.shapes import prepend_dims
from ember.inference.slots import Form, Slot
from ember.inference.statistics import Group
from ember.inference.structure import Structure

__all__ = ["can_replicate", "log_priors", "replicated"]


def can_replicate(plan: Plan) -> bool:
    """Whether the M-step of several parameter values can be one: every update is closed form."""
    return all(update.how in ("closed form", "fixed") for update in updates(plan)) and all(
        _is_plain(prior.site) for prior in plan.priors.values()
    )


def _is_plain(site: Site) -> bool:
    """Whether a prior is known, with arguments that are constants or gathered parameters."""
    return site.density is not None and not any(
        isinstance(found, AffineMap) for _, found in site.density.maps.values()
    )


def replicated(plan: Plan, count: int) -> Plan:
    """The plan for ``count`` parameter values; for its maps, its priors and the M-step only."""
    structure = plan.structure
    shapes = {name: p.shape for name, p in structure.parameters.items()}
    notes = {k: v for k, v in plan.notes.items() if k != "updates"}
    notes["updates"] = tuple(_update(update, count) for update in updates(plan))
    notes["starts"] = count
    return dataclasses.replace(
        plan,
        structure=_structure(structure, count),
        groups={key: _group(group, shapes, count) for key, group in plan.groups.items()},
        priors={name: _prior(prior, shapes, count) for name, prior in plan.priors.items()},
        notes=notes,
    )


def log_priors(plan: Plan, params: Mapping[str, Tensor], count: int) -> Tensor:
    """The log prior density of each value, ``(R,)``, by a replicated plan."""
    total = torch.zeros(count)
    for name, prior in plan.priors.items():
        assert prior.site.density is not None
        log_prob = prior.site.density.log_prob(params, params[name]) * prior.scale
        total = total + log_prob.reshape(count, -1).sum(1)
        if plan.notes.get("unconstrained"):
            extra = log_jacobian(plan.structure.parameters[name].support, params[name])
            total = total + (extra.reshape(count, -1).sum(1) if extra.dim() else extra)
    return total


def _structure(structure: Structure, count: int) -> Structure:
    parameters = {
        name: dataclasses.replace(
            p, shape=torch.Size([count, *p.shape]), start=p.start.expand(count, *p.shape)
        )
        for name, p in structure.parameters.items()
    }
    return dataclasses.replace(structure, parameters=parameters)


def _update(update: Update, count: int) -> Update:
    """The rows of a source begin after the copies of all rows before it."""
    usages = tuple(dataclasses.replace(u, start=u.start * count) for u in update.usages)
    return dataclasses.replace(update, usages=usages)


def _group(group: Group, shapes: Mapping[str, torch.Size], count: int) -> Group:
    columns = [
        _moved(group.cells[:, i], _sizes(slot.table, shapes), count).reshape(-1)
        for i, slot in enumerate(group.slots)
    ]
    about = [
        None if each is None else each.repeat(count, *(1,) * (each.dim() - 1))
        for each in (group.reference, group.reach)
    ]
    slots = tuple(_slot(slot, shapes, count) for slot in group.slots)
    cells, (reference, reach) = torch.stack(columns, 1), about
    frame = group.frame
    if frame is not None:
        frame = frame.about(frame.line.repeat(count, 1))
    return Group(group.key, group.family, slots, cells, reference, reach, frame)


def _slot(slot: Slot, shapes: Mapping[str, torch.Size], count: int) -> Slot:
    """A slot whose table of coefficients, if it has one, lists those of every value in turn."""
    table = slot.table
    if not isinstance(table, CoefficientTable):
        return slot
    entries = torch.tensor(table.entries)
    moved = _moved(entries, [shapes[source].numel() for source in table.sources], count)
    rows = tuple(tuple(row) for row in moved.flatten(0, 1).tolist())
    return dataclasses.replace(slot, table=dataclasses.replace(table, entries=rows))


def _sizes(
    table: Table | CoefficientTable | None, shapes: Mapping[str, torch.Size]
) -> Sequence[int]:
    """How many rows each source of a table has; a table of coefficients is one by itself."""
    if table is None:
        return ()
    if isinstance(table, CoefficientTable):
        return (len(table.entries),)
    return [shapes[s][: len(shapes[s]) - table.event_dim].numel() for s in table.sources]


def _moved(index: Tensor, sizes: Sequence[int], count: int) -> Tensor:
    """Rows of a table as rows of its replicated one, ``(R, *index.shape)``.

    Negative rows are constants, which all values share, as are all rows of a table of constants.
    """
    every = index.expand(count, *index.shape)
    if not sizes:
        return every
    size = torch.tensor(sizes)
    ends = size.cumsum(0)
    source = torch.searchsorted(ends, index.clamp_min(0).contiguous(), right=True)
    start = (ends - size)[source]
    value = torch.arange(count).reshape(-1, *(1,) * index.dim())
    moved = count * start + value * size[source] + (index - start)
    return torch.where(every < 0, every, moved)


def _prior(prior: PriorSite, shapes: Mapping[str, torch.Size], count: int) -> PriorSite:
    old = prior.site
    rank = len(old.layout.outer) + old.layout.inner
    assert old.density is not None
    site = dataclasses.replace(
        old,
        layout=Layout(("", *old.layout.outer), old.layout.inner),
        form=None if old.form is None else _form(old.form, shapes, rank, count),
        density=_density(old.density, shapes, rank, count),
    )
    return PriorSite(site, prior.scale, None if prior.group is None else group_of(site))


def _form(form: Form, shapes: Mapping[str, torch.Size], rank: int, count: int) -> Form:
    indices = tuple(
        _moved(prepend_dims(index, rank), _sizes(slot.table, shapes), count)
        for index, slot in zip(form.indices, form.slots, strict=True)
    )
    return dataclasses.replace(form, indices=indices)


def _density(density: Density, shapes: Mapping[str, torch.Size], rank: int, count: int) -> Density:
    maps: dict[str, tuple[str, ArgumentMap | AffineMap]] = {}
    for argument, (name, found) in density.maps.items():
        assert isinstance(found, ArgumentMap)
        if found.table is not None:
            event = found.offset.dim() - found.index.dim()
            found = dataclasses.replace(
                found,
                index=_moved(prepend_dims(found.index, rank), _sizes(found.table, shapes), count),
                coefficient=prepend_dims(found.coefficient, rank),
                offset=prepend_dims(found.offset, rank + event),
            )
        maps[argument] = (name, found)
    return dataclasses.replace(density, maps=maps)
