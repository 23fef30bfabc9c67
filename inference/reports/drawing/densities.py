"""One column: its histogram with the fitted density of each component and of their mixture."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ember.inference.reports.drawing.emission import Emission
from ember.inference.reports.drawing.palette import state_colours

__all__ = ["component_densities", "draw_density", "mixture_handle"]


POINTS = 400
DASHES = (0, (4, 2))


def draw_density(axes: Axes, emission: Emission, column: int) -> None:
    """A histogram with a line for every component, weighted by its share, and one for the sum."""
    shown = ~emission.rows[:, column].isnan()
    values = emission.rows[shown, column]
    weights = None if emission.weights is None else emission.weights[shown].cpu().numpy()
    discrete = emission.kind == "counts"
    grid, bins = _grid(values, discrete, weights is not None)
    axes.hist(
        values.cpu().numpy(), bins=bins, weights=weights, density=True, color="0.88",
        edgecolor="white", linewidth=0.5, zorder=1,
    )  # fmt: skip
    parts = (emission.shares.unsqueeze(-1) * component_densities(emission, column, grid)).cpu()
    grid = grid.cpu()
    marker = "o" if discrete and len(grid) < 40 else ""
    if emission.states > 1:
        axes.plot(grid, parts.sum(0), color="0.25", linewidth=1.2, linestyle=DASHES, zorder=2)
    colours = state_colours(emission.states) if emission.states > 1 else ["0.25"]
    for part, colour in zip(parts, colours, strict=True):
        axes.plot(grid, part, color=colour, linewidth=2.0, zorder=3, marker=marker, markersize=3.5)
    axes.set(xlabel=emission.columns[column], ylabel="probability" if discrete else "density")
    axes.set_ylim(bottom=0.0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=discrete))


def mixture_handle() -> Line2D:
    """The entry of a legend for the line of the sum."""
    return Line2D([], [], label="all together", color="0.25", linewidth=1.2, linestyle=DASHES)


def _grid(values: Tensor, discrete: bool, weighted: bool) -> tuple[Tensor, list[float] | int]:
    """Where densities are computed, and the edges of the histogram."""
    low, high = float(values.min()), float(values.max())
    if discrete:
        step = max(int(high - low) // POINTS, 1)
        grid = torch.arange(low, high + 1.0, step, dtype=torch.float64)
        width = max(int(np.ceil((high - low) / 60)), 1)
        return grid, np.arange(low - 0.5, high + width + 0.5, width).tolist()
    margin = 0.06 * (high - low) or 1.0
    grid = torch.linspace(low - margin, high + margin, POINTS, dtype=torch.float64)
    return grid, 30 if weighted else min(len(np.histogram_bin_edges(values.cpu(), "auto")), 60)


def component_densities(emission: Emission, column: int, grid: Tensor) -> Tensor:
    """The density of a column in each state at the points of a grid, ``(K, G)``."""
    base = emission.base
    if base.event_shape:  # a vector: the marginal of one of its entries
        assert emission.covariances is not None
        means = emission.means.reshape(emission.states, -1)[:, column]
        scales = emission.covariances[:, column, column].sqrt()
        normal = torch.distributions.Normal(means, scales)
        marginal: Tensor = normal.log_prob(grid.unsqueeze(-1)).exp().T
        return marginal
    points = grid.reshape(-1, *(1,) * len(base.batch_shape))
    inside = base.support.check(points)
    some = points[inside.reshape(len(points), -1).all(-1)]
    density = torch.zeros(len(grid), *base.batch_shape, dtype=torch.float64)
    if len(some):
        density[inside.reshape(len(points), -1).all(-1)] = base.log_prob(some).exp()
    index: list[slice | int] = [slice(None)]
    for axis, size in zip(emission.axes, base.batch_shape, strict=True):
        index.append(
            slice(None) if axis == "state" else column if axis == "column" and size > 1 else 0
        )
    taken = density[tuple(index)]
    return taken.reshape(len(grid), -1).T.expand(emission.states, -1)
