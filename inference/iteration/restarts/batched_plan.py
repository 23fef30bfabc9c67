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

from ember.inference.factors.tied import TiedFactors
from ember.inference.families.exponential_form import ExponentialForm, FamilyParameter
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.updates import How, Update, updates
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.parameters.affine_map import AffineMap, ParameterEntries
from ember.inference.parameters.argument_map import ArgumentMap, ParameterRows
from ember.inference.plan.plan import Plan
from ember.inference.plan.priors import PriorSite
from ember.inference.plan.tying import tie_of_site
from ember.inference.reading.site import DistributionTemplate, NamedDims, Site
from ember.inference.reading.structure import Structure

__all__ = ["batched_m_step", "batched_plan", "can_batch"]


def can_batch(plan: Plan) -> bool:
    """Whether the M-step of several parameter values can be one: every update is closed form."""
    return all(update.how in (How.CLOSED, How.FIXED) for update in updates(plan)) and all(
        _is_plain(prior.site) for prior in plan.priors.values()
    )


def _is_plain(site: Site) -> bool:
    """Whether a prior is known, with arguments that are constants or gathered parameters."""
    return site.density is not None and not any(
        isinstance(found, AffineMap) for _, found in site.density.maps.values()
    )


def batched_plan(plan: Plan, count: int) -> Plan:
    """The plan for ``count`` parameter values; for its maps, its priors and the M-step only."""
    shapes = {name: p.shape for name, p in plan.structure.parameters.items()}
    priors = {name: _prior(prior, shapes, count) for name, prior in plan.priors.items()}
    return dataclasses.replace(
        plan,
        structure=_structure(plan.structure, count),
        tied={key: _tied(tied, shapes, count) for key, tied in plan.tied.items()},
        prior=dataclasses.replace(plan.prior, sites=priors, starts=count),
        starts=count,
    )


def batched_m_step(plan: Plan, batched: Plan) -> MStep:
    """The M-step of a batched plan, with the updates of the plan that it was made from."""
    return MStep(batched, [_update(update, batched.starts) for update in updates(plan)])


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


def _tied(tied: TiedFactors, shapes: Mapping[str, torch.Size], count: int) -> TiedFactors:
    columns = [
        _moved(tied.cells[:, i], _sizes(family_parameter.table, shapes), count).reshape(-1)
        for i, family_parameter in enumerate(tied.parameters)
    ]
    reference, reach = (
        None if each is None else each.repeat(count, *(1,) * (each.dim() - 1))
        for each in (tied.reference, tied.reach)
    )
    family_parameters = tuple(
        _family_parameter(family_parameter, shapes, count) for family_parameter in tied.parameters
    )
    cells, frame = torch.stack(columns, 1), tied.frame
    if frame is not None:
        frame = frame.about(frame.line.repeat(count, 1))
    return TiedFactors(tied.key, tied.family, family_parameters, cells, reference, reach, frame)


def _family_parameter(
    family_parameter: FamilyParameter, shapes: Mapping[str, torch.Size], count: int
) -> FamilyParameter:
    """A family parameter; a table of coefficients lists those of every value in turn."""
    table = family_parameter.table
    if not isinstance(table, ParameterEntries):
        return family_parameter
    entries = torch.tensor(table.entries)
    moved = _moved(entries, [shapes[source].numel() for source in table.sources], count)
    rows = tuple(tuple(row) for row in moved.flatten(0, 1).tolist())
    return dataclasses.replace(family_parameter, table=dataclasses.replace(table, entries=rows))


def _sizes(
    table: ParameterRows | ParameterEntries | None, shapes: Mapping[str, torch.Size]
) -> Sequence[int]:
    """How many rows each source of a table has; a table of coefficients is one by itself."""
    if table is None:
        return ()
    if isinstance(table, ParameterEntries):
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
        layout=NamedDims(("", *old.layout.outer), old.layout.inner),
        form=None if old.form is None else _form(old.form, shapes, rank, count),
        density=_density(old.density, shapes, rank, count),
    )
    return PriorSite(site, prior.scale, None if prior.tied is None else tie_of_site(site))


def _form(
    form: ExponentialForm, shapes: Mapping[str, torch.Size], rank: int, count: int
) -> ExponentialForm:
    indices = tuple(
        _moved(prepend_dims(index, rank), _sizes(family_parameter.table, shapes), count)
        for index, family_parameter in zip(form.indices, form.parameters, strict=True)
    )
    return dataclasses.replace(form, indices=indices)


def _density(
    density: DistributionTemplate, shapes: Mapping[str, torch.Size], rank: int, count: int
) -> DistributionTemplate:
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
