"""What the levels of grouping factors, and the effects of each level, are called."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from ember.inference.inputs.categories import LABELS
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.plan.columns import alike, numbers_of, tables_of
from ember.inference.plan.plan import Plan
from ember.inference.reading.site import Slot

__all__ = ["latent_axes"]


INTERCEPT = "intercept"
EFFECTS = "_effects"  # how the ready models call the effects of a grouping factor
Names = tuple[str, ...]
Axes = dict[str, dict[int, Names]]


def latent_axes(plan: Plan, arguments: Mapping[str, object]) -> Axes:
    """Names along the axes of Gaussian latents that rows read by the codes of their levels.

    Args:
        plan: The plan of the fit.
        arguments: The model's arguments as tables, by name.

    Returns:
        Latent, or parameter of its prior, to axis to names: levels by the labels of a column with
        these codes, effects by the columns that multiply them.
    """
    found: Axes = {}
    tables = list(tables_of(tuple(arguments.values())))
    for name in plan.structure.gaussian if tables else ():
        site = plan.sites[name]
        batch = site.value.shape[: site.value.dim() - site.event_dim]
        size = site.value.numel() // max(batch.numel(), 1)
        if len(batch) != 1 or site.event_dim > 1:
            continue
        slots = _slots(plan, name)
        axes = {}
        if levels := _levels(slots, tables, batch[0], size):
            axes[0] = levels
        if size > 1 and (effects := _effects(slots, tables, size)):
            axes[1] = effects
            found |= _of_prior(plan, name, effects)
        if axes:
            found[name] = axes
    for name, unit in plan.structure.units.items() if tables else ():
        if len(unit.batch) == 1 and (levels := _of_units(plan, name, tables, unit.batch[0])):
            found[name] = {0: levels}
        if len(unit.batch) == 1 and (effects := _of_design(name, arguments, unit.event)):
            found.setdefault(name, {})[1] = effects
            found |= _of_computed_prior(plan, name, effects)
    return found


def _of_units(plan: Plan, latent: str, tables: Sequence[pd.DataFrame], count: int) -> Names | None:
    """The labels of the units of a latent that is integrated unit by unit."""
    for name in plan.structure.observed:
        slot = plan.sites[name].unit
        if slot is not None and latent in slot.latents:
            return _labels(slot.units.reshape(-1), tables, count)
    return None


def _of_design(latent: str, arguments: Mapping[str, object], event: torch.Size) -> Names | None:
    """The columns of a latent's ``design``, as the ready models call it and the latent."""
    design = arguments.get("design")
    if isinstance(design, Mapping):
        design = design.get(latent.removesuffix(EFFECTS))
    if not isinstance(design, pd.DataFrame) or event != (design.shape[1],):
        return None
    return tuple(INTERCEPT if str(n).lower() == INTERCEPT else str(n) for n in design.columns)


def _of_computed_prior(plan: Plan, latent: str, effects: Names) -> Axes:
    """The same names along the axes of the matrices that belong to a latent by their name."""
    stem, size = latent.removesuffix(EFFECTS), len(effects)
    shapes = {name: known.shape for name, known in plan.structure.parameters.items()}
    return {
        name: dict.fromkeys(range(len(shape)), effects)
        for name, shape in shapes.items()
        if name.startswith(f"{stem}_") and shape and all(length == size for length in shape)
    }


def _slots(plan: Plan, latent: str) -> list[tuple[Slot, int]]:
    """How the sites of data read a latent, and how many rows they have."""
    return [
        (slot, plan.sites[name].value.numel())
        for name in plan.structure.observed
        for slot in plan.sites[name].slots
        if slot.latent == latent and not plan.sites[name].event_dim
    ]


def _levels(
    slots: Sequence[tuple[Slot, int]], tables: Sequence[pd.DataFrame], count: int, size: int
) -> Names | None:
    """The labels of the column whose codes are the levels that rows read."""
    for slot, rows in slots:
        level = torch.div(slot.entries.reshape(-1), size, rounding_mode="floor")
        if len(level) == rows and (labels := _labels(level, tables, count)):
            return labels
    return None


def _labels(level: Tensor, tables: Sequence[pd.DataFrame], count: int) -> Names | None:
    """The labels of the column whose codes are the levels of rows."""
    for table in tables:
        labels = tuple(next(iter(table.attrs.get(LABELS, {}).values()), ()))
        if table.shape != (len(level), 1) or len(labels) != count:
            continue
        codes = numbers_of(table)
        if codes is not None and bool((codes[:, 0] == level).all()):
            return labels
    return None


def _effects(
    slots: Sequence[tuple[Slot, int]], tables: Sequence[pd.DataFrame], size: int
) -> Names | None:
    """The columns that multiply the effects of a level."""
    names: dict[int, str] = {}
    for slot, rows in slots:
        entry = slot.entries.reshape(-1) % size
        if slot.coefficient.numel() not in (1, rows) or bool((entry != entry[0]).any()):
            return None
        feature = -slot.coefficient.reshape(-1).expand(rows)  # it is taken from what is read
        name = _column(feature, tables)
        if name is None:
            return None
        names[int(entry[0])] = name
    return tuple(names[k] for k in range(size)) if len(names) == size else None


def _column(feature: Tensor, tables: Sequence[pd.DataFrame]) -> str | None:
    if alike(torch.ones_like(feature), feature):
        return INTERCEPT
    for table in tables:
        numbers = numbers_of(table) if len(table) == len(feature) else None
        if numbers is None:
            continue
        for name, column in zip(table.columns, numbers.T, strict=True):
            if alike(column, feature):
                return str(name)
    return None


def _of_prior(plan: Plan, latent: str, effects: Names) -> Axes:
    """The same names along the axes of the parameters of a latent's prior."""
    density, found = plan.sites[latent].density, dict[str, dict[int, Names]]()
    for _, argument in density.maps.values() if density is not None else ():
        if not isinstance(argument, ArgumentMap) or len(argument.sources) != 1:
            continue
        (source,) = argument.sources
        shape = plan.structure.parameters[source].shape
        if shape and all(length == len(effects) for length in shape):
            found[source] = dict.fromkeys(range(len(shape)), effects)
    return found
