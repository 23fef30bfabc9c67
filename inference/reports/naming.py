"""Which axis of a parameter runs along the columns of the data, and what the columns are called."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.plan.plan import Plan
from ember.inference.reading.site import Site

__all__ = ["WHOLE", "axis_labels", "column_names"]


INTERCEPT = "intercept"
SAME = 1e-9
WHOLE = -1
Names = tuple[str, ...]


def column_names(plan: Plan, arguments: Mapping[str, Any]) -> dict[str, Names]:
    """The columns of every argument, and observed site, that came as a data frame or series."""
    given: dict[str, Names] = {}
    for name, value in arguments.items():
        tables = list(_tables([value])) if not isinstance(value, Mapping) else []
        for table in tables:
            given[name] = tuple(map(str, table.columns))
    return given | _site_columns(plan, arguments)


def _site_columns(plan: Plan, arguments: Mapping[str, Any]) -> dict[str, Names]:
    found: dict[str, Names] = {}
    for table in _tables(tuple(arguments.values())):
        names = tuple(map(str, table.columns))
        if all(isinstance(name, int) for name in table.columns):
            continue  # what pandas calls columns without a name
        for site in plan.structure.observed:
            if site in found:
                continue
            if _holds(plan.sites[site], table):
                found[site] = names
                continue
            parts = ((n, table.iloc[:, [i]]) for i, n in enumerate(names))
            own = next((n for n, column in parts if _holds(plan.sites[site], column)), None)
            if own is not None:
                found[site] = (own,)
    return found


def axis_labels(
    plan: Plan, arguments: Mapping[str, Any], columns: Mapping[str, Names]
) -> dict[str, dict[int, Names]]:
    """For every parameter, the names along those of its axes that run over columns.

    Args:
        plan: The plan of the fit.
        arguments: The model's arguments as the user gave them, by name.
        columns: The names of the observed sites' columns, from ``column_names``.

    Returns:
        Parameter site to axis to names; axes and parameters without names are missing. Under
        ``WHOLE`` stands the one column that all of a parameter belongs to.
    """
    labels: dict[str, dict[int, Names]] = {}
    designs = list(_tables(tuple(arguments.values())))
    if not designs:
        return labels
    for name in plan.structure.observed:
        density = plan.sites[name].density
        for _, found in density.maps.values() if density is not None else ():
            if isinstance(found, ArgumentMap) and name in columns and len(found.sources) == 1:
                own = labels.setdefault(found.sources[0], {})
                axes = _column_axes(plan, plan.sites[name], found, len(columns[name]))
                own.update(dict.fromkeys(axes, columns[name]))
                if not axes and len(columns[name]) == 1:
                    shared = own.get(WHOLE, columns[name]) != columns[name]
                    own[WHOLE] = () if shared else columns[name]
                    own.update(_levels(plan, found, columns[name][0], designs))
            elif isinstance(found, AffineMap) and len(found.sources) == 1:
                features = _feature_names(found, designs)
                shape = plan.structure.parameters[found.sources[0]].shape
                if features and shape and shape[-1] == len(features):
                    labels.setdefault(found.sources[0], {})[len(shape) - 1] = features
    kept = {name: {a: n for a, n in axes.items() if n} for name, axes in labels.items()}
    return {name: axes for name, axes in kept.items() if axes}


def _tables(values: Sequence[Any]) -> Iterator[pd.DataFrame]:
    """The data frames among a model's arguments; a series is one of a single column."""
    for value in values:
        if isinstance(value, pd.DataFrame):
            yield value
        elif isinstance(value, pd.Series) and value.name is not None:
            frame = value.to_frame()
            frame.attrs = dict(value.attrs)
            yield frame
        elif isinstance(value, Mapping):
            yield from _tables(tuple(value.values()))


def _holds(site: Site, table: pd.DataFrame) -> bool:
    """Whether a site's data are those of a table, what is missing in either aside."""
    if site.value.numel() != table.size:
        return False
    numbers = _numbers(table)
    if numbers is None:
        return False
    value = site.value.reshape(numbers.shape).to(torch.float64)
    return bool(((value == numbers) | numbers.isnan() | value.isnan()).all())


def _numbers(table: pd.DataFrame) -> Tensor | None:
    try:
        return torch.tensor(table.to_numpy(dtype="float64", na_value=float("nan")))
    except (TypeError, ValueError):
        return None


def _column_axes(plan: Plan, site: Site, found: ArgumentMap, columns: int) -> list[int]:
    """The axes of the one parameter behind an argument along which the site's columns run."""
    if found.table is None or len(found.sources) != 1:
        return []
    shape, event = plan.structure.parameters[found.sources[0]].shape, found.table.event_dim
    if not site.inner_shape:  # a vector or matrix of the distribution itself
        whole = all(size == columns for size in shape[len(shape) - event :])
        return list(range(len(shape) - event, len(shape))) if event and whole else []
    batch = shape[: len(shape) - event]
    if not found.index.dim() or found.index.shape[-1] != columns or not batch:
        return []
    places = torch.unravel_index(found.index, batch)
    column = torch.arange(columns)
    return [a for a, place in enumerate(places) if bool((place == column).all())][-1:]


def _levels(
    plan: Plan, found: ArgumentMap, column: str, tables: Sequence[pd.DataFrame]
) -> dict[int, Names]:
    """The labels behind the codes of a column of categories, along the axis of its levels."""
    shape = plan.structure.parameters[found.sources[0]].shape
    for table in tables:
        labels = tuple(map(str, table.attrs.get("labels", {}).get(column, ())))
        if labels and found.domain == "simplex" and shape and shape[-1] == len(labels):
            return {len(shape) - 1: labels}
    return {}


def _feature_names(found: AffineMap, tables: Sequence[pd.DataFrame]) -> Names | None:
    """The covariate behind each coefficient of a line: a column by its name, or the intercept."""
    entries = found.table.entries[0]
    if entries != tuple(range(entries[0], entries[0] + len(entries))):
        return None
    shape = torch.broadcast_shapes(found.index.shape, found.features.shape[:-1])
    index = found.index.expand(shape)
    rows = found.features.expand(*shape, -1)[index == index.reshape(-1)[0]]
    known = [
        (str(name), column)
        for table in tables
        if (numbers := _numbers(table)) is not None and len(numbers) == len(rows)
        for name, column in zip(table.columns, numbers.T, strict=True)
    ]
    names = []
    for feature in rows.T:
        candidates = [(INTERCEPT, torch.ones_like(feature)), *known]
        same = [name for name, column in candidates if _alike(column, feature)]
        if not same:
            return None
        names.append(same[0])
    return tuple(names)


def _alike(column: Tensor, feature: Tensor) -> bool:
    """Whether a covariate that was read off the model's runs is this column, up to rounding."""
    return bool((column - feature).abs().max() <= SAME * column.abs().max())
