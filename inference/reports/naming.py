"""Which axis of a parameter runs along the columns of the data, and what the columns are called."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from ember.inference.inputs.categories import LABELS
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.plan.columns import alike, holds, numbers_of, rows_of_line, tables_of
from ember.inference.plan.plan import Plan
from ember.inference.reading.site import Site

__all__ = ["WHOLE", "axis_labels", "column_names"]


INTERCEPT = "intercept"
COEFFICIENTS = "coefficients"  # how the ready regressions call them
WHOLE = -1
Names = tuple[str, ...]


def column_names(plan: Plan, arguments: Mapping[str, object]) -> dict[str, Names]:
    """The columns of every argument, and observed site, that came as a data frame or series."""
    given: dict[str, Names] = {}
    for name, value in arguments.items():
        tables = list(tables_of([value])) if not isinstance(value, Mapping) else []
        for table in tables:
            given[name] = tuple(map(str, table.columns))
    return given | _site_columns(plan, arguments)


def _site_columns(plan: Plan, arguments: Mapping[str, object]) -> dict[str, Names]:
    columns: dict[str, Names] = {}
    for table in tables_of(tuple(arguments.values())):
        names = tuple(map(str, table.columns))
        if all(isinstance(name, int) for name in table.columns):
            continue  # what pandas calls columns without a name
        for site in plan.structure.observed:
            if site in columns:
                continue
            if holds(plan.sites[site], table):
                columns[site] = names
                continue
            parts = ((n, table.iloc[:, [i]]) for i, n in enumerate(names))
            single = next((n for n, column in parts if holds(plan.sites[site], column)), None)
            if single is not None:
                columns[site] = (single,)
    return columns


def axis_labels(
    plan: Plan, arguments: Mapping[str, object], columns: Mapping[str, Names]
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
    designs = list(tables_of(tuple(arguments.values())))
    if not designs:
        return labels
    for name in plan.structure.observed:
        density = plan.sites[name].density
        for _, argument in density.maps.values() if density is not None else ():
            if len(argument.sources) != 1:
                continue
            (source,) = argument.sources
            if isinstance(argument, ArgumentMap) and name in columns:
                axes = labels.setdefault(source, {})
                _label_columns(axes, plan, name, argument, columns[name], designs)
            elif isinstance(argument, AffineMap):
                features = _feature_names(argument, designs)
                shape = plan.structure.parameters[source].shape
                if features and shape and shape[-1] == len(features):
                    labels.setdefault(source, {})[len(shape) - 1] = features
    _label_coefficients(labels, plan, columns)
    kept = {name: {a: n for a, n in axes.items() if n} for name, axes in labels.items()}
    return {name: axes for name, axes in kept.items() if axes}


def _label_coefficients(
    labels: dict[str, dict[int, Names]], plan: Plan, columns: Mapping[str, Names]
) -> None:
    """Names the coefficients of ready models whose lines are computed, by the columns of ``X``."""
    parameter, names = plan.structure.parameters.get(COEFFICIENTS), columns.get("X", ())
    if parameter is None or not parameter.shape or labels.get(COEFFICIENTS):
        return
    last, lead = len(parameter.shape) - 1, parameter.shape[-1] - len(names)
    if names and lead in (0, 1):
        labels[COEFFICIENTS] = {last: (*(INTERCEPT,) * lead, *names)}


def _label_columns(
    axes: dict[int, Names],
    plan: Plan,
    site: str,
    argument: ArgumentMap,
    columns: Names,
    designs: Sequence[pd.DataFrame],
) -> None:
    """Adds the names of a site's columns along the axes of the parameter behind an argument."""
    along = _column_axes(plan, plan.sites[site], argument, len(columns))
    axes.update(dict.fromkeys(along, columns))
    if along:
        axes.update(_levels(plan, argument, columns, designs))
    if not along and len(columns) == 1:
        shared = axes.get(WHOLE, columns) != columns
        axes[WHOLE] = () if shared else columns
        axes.update(_levels(plan, argument, columns, designs))


def _column_axes(plan: Plan, site: Site, argument: ArgumentMap, columns: int) -> list[int]:
    """The axes of the one parameter behind an argument along which the site's columns run."""
    if argument.table is None or len(argument.sources) != 1:
        return []
    shape, event = plan.structure.parameters[argument.sources[0]].shape, argument.table.event_dim
    if not site.inner_shape:  # a vector or matrix of the distribution itself
        whole = all(size == columns for size in shape[len(shape) - event :])
        return list(range(len(shape) - event, len(shape))) if event and whole else []
    batch = shape[: len(shape) - event]
    if not argument.index.dim() or argument.index.shape[-1] != columns or not batch:
        return []
    coordinates = torch.unravel_index(argument.index, batch)
    column = torch.arange(columns)
    return [a for a, along in enumerate(coordinates) if bool((along == column).all())][-1:]


def _levels(
    plan: Plan, argument: ArgumentMap, columns: Names, tables: Sequence[pd.DataFrame]
) -> dict[int, Names]:
    """The labels behind codes of categories, along the axis of levels, if columns share them."""
    shape = plan.structure.parameters[argument.sources[0]].shape
    for table in tables:
        known = table.attrs.get(LABELS, {})
        shared = {tuple(map(str, known.get(column, ()))) for column in columns}
        labels = shared.pop() if len(shared) == 1 else ()
        if labels and argument.domain == "simplex" and shape and shape[-1] == len(labels):
            return {len(shape) - 1: labels}
    return {}


def _feature_names(line: AffineMap, tables: Sequence[pd.DataFrame]) -> Names | None:
    """The covariate behind each coefficient of a line: a column by its name, or the intercept."""
    rows = rows_of_line(line)
    if rows is None:
        return None
    known = [
        (str(name), column)
        for table in tables
        if (numbers := numbers_of(table)) is not None and len(numbers) == len(rows)
        for name, column in zip(table.columns, numbers.T, strict=True)
    ]
    names = []
    for feature in rows.T:
        candidates = [(INTERCEPT, torch.ones_like(feature)), *known]
        same = [name for name, column in candidates if alike(column, feature)]
        if not same:
            return None
        names.append(same[0])
    return tuple(names)
