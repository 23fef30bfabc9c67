"""Regressions: points and fitted lines against each covariate; else what was seen and expected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from torch import Tensor

from ember.inference.plan.plan import Params, Plan
from ember.inference.queries.uncertainty.intervals import Interval, between_bounds
from ember.inference.reports.drawing.emission import Emission
from ember.inference.reports.drawing.emissions import read_emissions
from ember.inference.reports.drawing.palette import crowding, state_colours, thinned
from ember.inference.reports.fitted import Fitted, Sure

__all__ = ["Covariate", "across", "covariates_of", "draw_expected", "draw_lines"]


MOST = 6  # covariates with a panel of their own
POINTS = 200
BAND = 0.2  # how opaque
LEVEL = 0.95


@dataclass(frozen=True)
class Curve:
    """Means along a covariate.

    Attributes:
        grid: Its values ``(G,)``.
        means: The mean of each state, ``(K, G)``.
        band: Their confidence intervals, if these are drawn.
    """

    grid: Tensor
    means: Tensor
    band: Interval | None = None


@dataclass(frozen=True)
class Covariate:
    """A column of an argument that the fitted means may follow."""

    name: str
    argument: int | str
    column: int | None
    values: Tensor
    curve: Curve | None = None


def covariates_of(fit: Fitted, emission: Emission, sure: Sure | None = None) -> list[Covariate]:
    """The columns of arguments that the fitted means follow; none if they are too many to draw."""
    covariates, rows = [], len(emission.rows)
    data = [fit.plan.sites[name].value for name in fit.plan.structure.observed]
    for key, value in _row_arguments(fit, rows):
        if not value.is_floating_point() or any(_is_same(value, known) for known in data):
            continue
        name = _argument_name(fit, key)
        names = fit.columns.get(name, ())
        for i, column in enumerate(value.reshape(rows, -1).T):
            if bool(column.isnan().any()) or float(column.max() - column.min()) == 0.0:
                continue
            label = names[i] if i < len(names) else name if value.dim() == 1 else f"{name}[{i}]"
            covariates.append(Covariate(label, key, i if value.dim() > 1 else None, column))
            if len(covariates) > MOST:
                return []
    drawn = [replace(c, curve=_curve(fit, emission, c, sure)) for c in covariates]
    return [c for c in drawn if c.curve is not None and float(c.curve.means.std(-1).max()) > 0.0]


def _row_arguments(fit: Fitted, rows: int) -> Iterator[tuple[int | str, Tensor]]:
    arguments = fit.plan.structure.arguments
    pairs: list[tuple[int | str, object]] = [*enumerate(arguments.args), *arguments.kwargs.items()]
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


def draw_lines(figure: FigureBase, emission: Emission, covariates: list[Covariate]) -> None:
    """A panel for each covariate; the others are held at their means.

    With several covariates a real response is drawn as its line at the covariate plus its own
    residual, so that the points scatter about the line as they do about the whole regression.

    Reference: Larsen & McCleary (1972), Technometrics 14, 781-790 (partial residuals).
    """
    columns = across(len(covariates))
    panels = figure.subplots(
        math.ceil(len(covariates) / columns), columns, sharey=True, squeeze=False
    ).reshape(-1)
    for axes in panels[len(covariates) :]:
        axes.set_axis_off()
    adjusted = emission.kind == "real" and len(covariates) > 1
    for i, (axes, covariate) in enumerate(zip(panels, covariates, strict=False)):
        _draw_panel(axes, emission, covariate, adjusted)
        axes.set_xlabel(covariate.name)
        if i % columns == 0:
            others = ", others at their means" if adjusted else ""
            axes.set_ylabel(f"{emission.columns[0]}{others}")


def _draw_panel(axes: Axes, emission: Emission, covariate: Covariate, adjusted: bool) -> None:
    y, states = emission.rows[:, 0], emission.states
    assert covariate.curve is not None
    grid, means, band = (
        covariate.curve.grid.cpu(), covariate.curve.means.cpu(), covariate.curve.band
    )  # fmt: skip
    best = emission.row_posterior.argmax(-1)
    row_means = emission.means.expand(-1, *emission.values.shape)
    row_means = row_means.reshape(len(emission.means), -1)
    known = thinned((~y.isnan()).nonzero().reshape(-1))
    for k, colour in enumerate(state_colours(states)):
        rows = known[best[known] == k]
        x, shown = covariate.values[rows].cpu().numpy(), y[rows].cpu().numpy()
        if adjusted:
            fitted = row_means[min(k, len(row_means) - 1)][rows].cpu().numpy()
            shown = shown - fitted + np.interp(x, grid.numpy(), means[k].numpy())
        axes.plot(
            x, shown, "o", color=colour, markersize=3.5, markeredgewidth=0.0,
            alpha=crowding(len(known)), zorder=1,
        )  # fmt: skip
    for k, colour in enumerate(state_colours(states)):
        if band is not None:
            low, high = band.lower[k].cpu(), band.upper[k].cpu()
            axes.fill_between(grid, low, high, color=colour, alpha=BAND, linewidth=0.0, zorder=2)
        axes.plot(grid, means[k], color="white", linewidth=3.6, zorder=2)
        axes.plot(grid, means[k], color=colour, linewidth=2.0, zorder=3)


def _curve(
    fit: Fitted, emission: Emission, covariate: Covariate, sure: Sure | None
) -> Curve | None:
    """The mean of each state along a covariate, the others at their means."""
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
        means = _means(fit, plan, emission, fit.params)
    except (ValueError, TypeError, RuntimeError, IndexError):
        return None  # the model takes no other rows than its own
    if means.shape[1] not in (1, POINTS):
        return None
    band = None if sure is None else _band(fit, plan, emission, means, sure)
    return Curve(grid, means.expand(emission.states, POINTS), band)


def _band(fit: Fitted, plan: Plan, emission: Emission, means: Tensor, sure: Sure) -> Interval:
    """The confidence intervals of the means in the rows of a plan; those of counts are positive."""
    errors = sure.errors_of(lambda moved: _means(fit, plan, emission, moved).reshape(-1))
    least = torch.full_like(means, 0.0 if emission.kind == "counts" else -math.inf)
    most = torch.full_like(means, math.inf)
    found = between_bounds(means, errors.reshape(means.shape), least, most, LEVEL)
    lower, upper = (end.expand(emission.states, POINTS) for end in found)
    return Interval(lower, upper)


def _means(fit: Fitted, plan: Plan, emission: Emission, params: Params) -> Tensor:
    """The mean of each state in each row of a plan, ``(K, rows)``."""
    (drawn,) = [e for e in read_emissions(plan, params, fit.columns) if e.site == emission.site]
    return drawn.means.reshape(len(drawn.means), -1)


def draw_expected(axes: Axes, emission: Emission) -> None:
    """Every entry of the data against its fitted mean, and the line on which they would agree."""
    shape = (len(emission.means), *emission.values.shape)
    means = emission.means.expand(shape).expand(emission.states, *shape[1:])
    fitted = (emission.posterior.movedim(-1, 0).unsqueeze(-1) * means).sum(0).reshape(-1)
    observed = emission.values.reshape(-1)
    known = thinned((~observed.isnan()).nonzero().reshape(-1))
    best = emission.posterior.argmax(-1, keepdim=True).expand(emission.values.shape).reshape(-1)
    for k, colour in enumerate(state_colours(emission.states)):
        entries = known[best[known] == k]
        axes.plot(
            fitted[entries].cpu(), observed[entries].cpu(), "o", color=colour, markersize=3.5,
            markeredgewidth=0.0, alpha=crowding(len(known)), zorder=2,
        )  # fmt: skip
    limits = [float(f(torch.cat([fitted[known], observed[known]]))) for f in (torch.min, torch.max)]
    axes.plot(limits, limits, color="0.3", linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
    site = emission.columns[0] if len(emission.columns) == 1 else emission.site
    axes.set(xlabel=f"{site}, expected", ylabel=f"{site}, observed")
