"""Columns of a user's tables in a plan: which site holds them, and codes that are no numbers."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.inputs.categories import LABELS
from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.plan.plan import Plan
from ember.inference.reading.matching.arguments import probe_values
from ember.inference.reading.site import Site
from ember.inference.reading.unwrapping import unwrap

__all__ = ["alike", "check_codes", "holds", "numbers_of", "rows_of_line", "tables_of"]


SAME = 1e-9
CODED = (dist.Categorical, dist.OneHotCategorical, dist.Bernoulli)


def tables_of(values: Sequence[object]) -> Iterator[pd.DataFrame]:
    """The data frames among a model's arguments; a series is one of a single column."""
    for value in values:
        if isinstance(value, pd.DataFrame):
            yield value
        elif isinstance(value, pd.Series) and value.name is not None:
            frame = value.to_frame()
            frame.attrs = dict(value.attrs)
            yield frame
        elif isinstance(value, Mapping):
            yield from tables_of(tuple(value.values()))


def holds(site: Site, table: pd.DataFrame) -> bool:
    """Whether a site's data are those of a table, what is missing in either aside."""
    if site.value.numel() != table.size:
        return False
    numbers = numbers_of(table)
    if numbers is None:
        return False
    value = site.value.reshape(numbers.shape).to(torch.float64)
    return bool(((value == numbers) | numbers.isnan() | value.isnan()).all())


def numbers_of(table: pd.DataFrame) -> Tensor | None:
    """The entries of a table, NaN where missing; None if there are others than numbers."""
    try:
        return torch.tensor(table.to_numpy(dtype="float64", na_value=float("nan")))
    except (TypeError, ValueError):
        return None


def rows_of_line(line: AffineMap) -> Tensor | None:
    """The features ``(N, F)`` of a line whose coefficients are one parameter's, in their order."""
    entries = line.table.entries[0]
    if entries != tuple(range(entries[0], entries[0] + len(entries))):
        return None
    shape = broadcast_shapes(line.index.shape, line.features.shape[:-1])
    index = line.index.expand(shape)
    return line.features.expand(*shape, -1)[index == index.reshape(-1)[0]]


def alike(column: Tensor, feature: Tensor) -> bool:
    """Whether a covariate that was read off the model's runs is this column, up to rounding."""
    return bool((column - feature).abs().max() <= SAME * column.abs().max())


def check_codes(plan: Plan, arguments: Sequence[object]) -> None:
    """Refuses codes of words that a model takes for numbers.

    Two labels make a number too: whether it is the second.

    Args:
        plan: The plan for the arguments.
        arguments: The arguments, tables among them with the labels of their codes.

    Raises:
        TypeError: Naming the column.
    """
    for table in tables_of(arguments):
        labels = {n: known for n, known in table.attrs.get(LABELS, {}).items() if n in table}
        words = [name for name, known in labels.items() if table[name].dtype.kind != "b"]
        if not words:
            continue
        holders = [n for n in plan.structure.observed if holds(plan.sites[n], table)]
        for name in words:
            single = table[[name]]
            sites = [n for n in plan.structure.observed if holds(plan.sites[n], single)]
            if (sites or holders) and not any(_takes_codes(plan, n) for n in (*sites, *holders)):
                _refuse(name, f"site '{(*sites, *holders)[0]}' takes numbers")
            if len(labels[name]) > 2 and _is_feature(plan, single):
                _refuse(name, "the model multiplies it")


def _takes_codes(plan: Plan, name: str) -> bool:
    trace = plan.structure.trace(probe_values(plan.structure, 0))
    return isinstance(unwrap(trace.nodes[name]["fn"]).base, CODED)


def _is_feature(plan: Plan, column: pd.DataFrame) -> bool:
    """Whether a line of the model multiplies a column."""
    numbers = numbers_of(column)
    for name in plan.structure.observed if numbers is not None else ():
        density = plan.sites[name].density
        for _, argument in density.maps.values() if density is not None else ():
            rows = rows_of_line(argument) if isinstance(argument, AffineMap) else None
            if rows is not None and len(rows) == len(column):
                assert numbers is not None
                if any(alike(numbers[:, 0], feature) for feature in rows.T):
                    return True
    return False


def _refuse(column: str, why: str) -> None:
    raise TypeError(
        f"column '{column}' holds words, and {why}; leave it out, encode it as numbers, or write a "
        "formula, which gives each category its own coefficient."
    )
