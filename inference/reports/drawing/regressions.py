"""Regressions: points and fitted lines against each covariate; else what was seen and expected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from torch import Tensor

from ember.inference.reports.drawing.emissions import Emission, read_emissions
from ember.inference.reports.drawing.palette import crowding, state_colours, thinned
from ember.inference.reports.fitted import Fitted

__all__ = ["Covariate", "across", "covariates_of", "draw_expected", "draw_lines"]


MOST = 6  # covariates with a panel of their own
POINTS = 200


@dataclass(frozen=True)
class Covariate:
    """A column of an argument that the fitted means may follow."""

    name: str
    argument: int | str
    column: int | None
    values: Tensor
    curve: tuple[Tensor, Tensor] | None = None


def covariates_of(fit: Fitted, emission: Emission) -> list[Covariate]:
    """The columns of arguments that the fitted means follow; none if they are too many to draw."""
    found, rows = [], len(emission.rows)
    data = [fit.plan.sites[name].value for name in fit.plan.structure.observed]
    for key, value in _row_arguments(fit, rows):
        if not value.is_floating_point() or any(_is_same(value, known) for known in data):
            continue
        name = _argument_name(fit, key)
        names = fit.columns.get(name, ())
        for i, column in enumerate(value.reshape(rows, -1).T):
            if bool(column.isnan().any()) or float(column.max() - column.min()) == 0.0:
                continue
            own = names[i] if i < len(names) else name if value.dim() == 1 else f"{name}[{i}]"
            found.append(Covariate(own, key, i if value.dim() > 1 else None, column))
            if len(found) > MOST:
                return []
    drawn = [replace(c, curve=_curve(fit, emission, c)) for c in found]
    return [c for c in drawn if c.curve is not None and float(c.curve[1].std(-1).max()) > 0.0]


def _row_arguments(fit: Fitted, rows: int) -> Iterator[tuple[int | str, Tensor]]:
    arguments = fit.plan.structure.arguments
    pairs: list[tuple[int | str, Any]] = [*enumerate(arguments.args), *arguments.kwargs.items()]
    for key, value in pairs:
        if (
            isinstance(value, Tensor)
            and value.layout == torch.strided
            and value.dim() in (1, 2)
            and len(value) == rows
        ):
            yield key, value


def _is_same(value: Tensor, data: Tensor) -> bool:
    """Whether an argument holds the data of a site, what is missing aside."""
    if value.numel() != data.numel():
        return False
    data = data.reshape(value.shape).to(value.dtype)
    return bool(((value == data) | value.isnan() | data.isnan()).all())


def _argument_name(fit: Fitted, key: int | str) -> str:
    names = fit.argument_names()
    return key if isinstance(key, str) else names[key] if key < len(names) else f"argument {key}"


def across(panels: int) -> int:
    """How many panels stand side by side."""
    return min(math.ceil(math.sqrt(panels)) if panels > 3 else panels, 3)


def draw_lines(figure: FigureBase, emission: Emission, found: list[Covariate]) -> None:
    """A panel for each covariate; the others are held at their means.

    With several covariates a real response is drawn as its line at the covariate plus its own
    residual, so that the points scatter about the line as they do about the whole regression.

    Reference: Larsen & McCleary (1972), Technometrics 14, 781-790 (partial residuals).
    """
    columns = across(len(found))
    panels = figure.subplots(
        math.ceil(len(found) / columns), columns, sharey=True, squeeze=False
    ).reshape(-1)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    adjusted = emission.kind == "real" and len(found) > 1
    for i, (axes, covariate) in enumerate(zip(panels, found, strict=False)):
        _draw_panel(axes, emission, covariate, adjusted)
        axes.set_xlabel(covariate.name)
        if i % columns == 0:
            others = ", others at their means" if adjusted else ""
            axes.set_ylabel(f"{emission.columns[0]}{others}")


def _draw_panel(axes: Axes, emission: Emission, covariate: Covariate, adjusted: bool) -> None:
    y, states = emission.rows[:, 0], emission.states
    assert covariate.curve is not None
    grid, means = covariate.curve
    best = emission.row_posterior.argmax(-1)
    own = emission.means.expand(-1, *emission.values.shape).reshape(len(emission.means), -1)
    there = thinned((~y.isnan()).nonzero().reshape(-1))
    for k, colour in enumerate(state_colours(states)):
        mine = there[best[there] == k]
        x, shown = covariate.values[mine].numpy(), y[mine].numpy()
        if adjusted:
            fitted = own[min(k, len(own) - 1)][mine].numpy()
            shown = shown - fitted + np.interp(x, grid.numpy(), means[k].numpy())
        axes.plot(
            x, shown, "o", color=colour, markersize=3.5, markeredgewidth=0.0,
            alpha=crowding(len(there)), zorder=1,
        )  # fmt: skip
    for k, colour in enumerate(state_colours(states)):
        axes.plot(grid, means[k], color="white", linewidth=3.6, zorder=2)
        axes.plot(grid, means[k], color=colour, linewidth=2.0, zorder=3)


def _curve(fit: Fitted, emission: Emission, covariate: Covariate) -> tuple[Tensor, Tensor] | None:
    """The mean of each state along a covariate, the others at their means: ``(G,)``, ``(K, G)``."""
    rows = len(emission.rows)
    low, high = float(covariate.values.min()), float(covariate.values.max())
    grid = torch.linspace(low, high, POINTS, dtype=torch.float64)
    arguments = fit.plan.structure.arguments
    args, kwargs = list(arguments.args), dict(arguments.kwargs)
    data = [fit.plan.sites[name].value for name in fit.plan.structure.observed]
    for key, value in _row_arguments(fit, rows):
        if any(_is_same(value, known) for known in data) or not value.is_floating_point():
            new = value[torch.arange(POINTS) % rows]
        else:
            new = value.nanmean(0, keepdim=True).expand(POINTS, *value.shape[1:]).clone()
        if key == covariate.argument:
            new[(..., covariate.column) if covariate.column is not None else ...] = grid
        if isinstance(key, int):
            args[key] = new
        else:
            kwargs[key] = new
    try:
        plan = fit.plan_for(tuple(args), kwargs)
        (drawn,) = [
            e for e in read_emissions(plan, fit.params, fit.columns) if e.site == emission.site
        ]
    except (ValueError, TypeError, RuntimeError, IndexError):
        return None  # the model takes no other rows than its own
    means = drawn.means.reshape(len(drawn.means), -1)
    if means.shape[1] == 1:
        means = means.expand(-1, POINTS)
    return (grid, means.expand(emission.states, -1)) if means.shape[1] == POINTS else None


def draw_expected(axes: Axes, emission: Emission) -> None:
    """Every entry of the data against its fitted mean, and the line on which they would agree."""
    shape = (len(emission.means), *emission.values.shape)
    means = emission.means.expand(shape).expand(emission.states, *shape[1:])
    fitted = (emission.posterior.movedim(-1, 0).unsqueeze(-1) * means).sum(0).reshape(-1)
    seen = emission.values.reshape(-1)
    there = thinned((~seen.isnan()).nonzero().reshape(-1))
    best = emission.posterior.argmax(-1, keepdim=True).expand(emission.values.shape).reshape(-1)
    for k, colour in enumerate(state_colours(emission.states)):
        mine = there[best[there] == k]
        axes.plot(
            fitted[mine], seen[mine], "o", color=colour, markersize=3.5, markeredgewidth=0.0,
            alpha=crowding(len(there)), zorder=2,
        )  # fmt: skip
    limits = [float(f(torch.cat([fitted[there], seen[there]]))) for f in (torch.min, torch.max)]
    axes.plot(limits, limits, color="0.3", linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
    site = emission.columns[0] if len(emission.columns) == 1 else emission.site
    axes.set(xlabel=f"{site}, expected", ylabel=f"{site}, observed")
