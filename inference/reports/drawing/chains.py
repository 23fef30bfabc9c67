"""Chains: the data over time in the colours of their states, and how sure the states are."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ember.inference.reports.drawing.emission import Emission
from ember.inference.reports.drawing.palette import state_colours

__all__ = ["SEQUENCES", "draw_chain", "panel_count"]


SEQUENCES = 3  # shown side by side; more would be too narrow
COLUMNS = 6
ITEMS = 12  # above these, items are no longer named


def panel_count(emission: Emission) -> int:
    """How many panels of data stand above that of the probabilities."""
    return 1 if _is_raster(emission) else min(len(emission.columns), COLUMNS)


def _is_raster(emission: Emission) -> bool:
    return emission.kind in ("levels", "parts") and len(emission.columns) > 1


def draw_chain(figure: FigureBase, emission: Emission, path: Tensor) -> None:
    """A panel for each column of data, and one for the states' probabilities below.

    Args:
        figure: Where to draw.
        emission: The data and the states.
        path: The most probable path, shaped like the places of the data.
    """
    steps = emission.values.shape[-2]
    values = emission.values.reshape(-1, steps, len(emission.columns))[:SEQUENCES]
    posterior = emission.posterior.reshape(-1, steps, emission.states)[:SEQUENCES]
    paths = path.reshape(-1, steps)[:SEQUENCES]
    means = _means_along(emission, len(values), steps)
    count, total = panel_count(emission), emission.values[..., 0].numel() // steps
    grid = figure.subplots(
        count + 1, len(values), sharex="col", sharey="row", squeeze=False,
        gridspec_kw={"height_ratios": [1.0] * count + [0.6]},
    )  # fmt: skip
    for s in range(len(values)):
        there = ~values[s].isnan().all(-1)
        length = int(there.nonzero().max()) + 1 if bool(there.any()) else steps
        for column in range(count):
            axes = grid[column, s]
            if _is_raster(emission):
                _draw_raster(axes, values[s, :length], emission.columns)
            else:
                inside = (s, slice(length))
                own = means[:, s, :length, column]
                _draw_steps(axes, values[inside][:, column], paths[inside], own)
                if emission.kind != "real":
                    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if s == 0 and not _is_raster(emission):
                axes.set_ylabel(emission.columns[column])
        if total > 1:
            grid[0, s].set_title(f"sequence {s} of {total}", fontsize=10)
        _draw_probabilities(grid[-1, s], posterior[s, :length])
        grid[-1, s].set_xlabel("step")
    grid[-1, 0].set_ylabel("probability")
    figure.align_ylabels(list(grid[:, 0]))


def _means_along(emission: Emission, sequences: int, steps: int) -> Tensor:
    """The mean of every state at each step, ``(K, sequences, steps, D)``."""
    columns = len(emission.columns)
    if emission.kind in ("levels", "parts"):
        return torch.full((1, sequences, steps, columns), torch.nan).expand(
            emission.states, -1, -1, -1
        )
    shape = (len(emission.means), *emission.values.shape)
    full = emission.means.expand(shape).reshape(shape[0], -1, steps, columns)[:, :sequences]
    return full.expand(emission.states, -1, -1, -1)


def _draw_steps(axes: Axes, values: Tensor, path: Tensor, means: Tensor) -> None:
    """One column over time: points, and the mean of the state that each step is in."""
    steps, colours = np.arange(len(values)), state_colours(len(means))
    axes.plot(steps, values.cpu(), color="0.75", linewidth=0.7, zorder=1)
    sparse = len(values) <= 400
    for k, colour in enumerate(colours):
        inside = (path == k).cpu().numpy()
        axes.plot(
            steps[inside], values.cpu().numpy()[inside], "o", color=colour, markeredgewidth=0.0,
            markersize=4.0 if sparse else 2.0, zorder=2,
        )  # fmt: skip
        for run in np.split(steps[inside], np.flatnonzero(np.diff(steps[inside]) > 1) + 1):
            if len(run):  # a line as long as the stay, half a step to both sides
                edges = np.concatenate([[run[0] - 0.5], run, [run[-1] + 0.5]])
                level = means[k].cpu().numpy()[np.concatenate([[run[0]], run, [run[-1]]])]
                axes.plot(edges, level, color=colour, linewidth=2.2, alpha=0.9, zorder=3)
    axes.margins(x=0.01)


def _draw_raster(axes: Axes, values: Tensor, names: Sequence[str]) -> None:
    """Many items over time: a row for each, the darker the higher its level."""
    axes.imshow(
        values.T.cpu().numpy(), aspect="auto", cmap="Greys", interpolation="nearest",
        extent=(-0.5, len(values) - 0.5, len(names) - 0.5, -0.5),
        vmin=0.0,
    )  # fmt: skip
    if len(names) <= ITEMS:
        axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", length=0)


def _draw_probabilities(axes: Axes, posterior: Tensor) -> None:
    """The posterior of the state at each step, stacked."""
    steps = np.arange(len(posterior) + 1) - 0.5
    lower = np.zeros(len(posterior))
    for k, colour in enumerate(state_colours(posterior.shape[-1])):
        upper = lower + posterior[:, k].cpu().numpy()
        axes.fill_between(
            steps, np.append(lower, lower[-1]), np.append(upper, upper[-1]), step="post",
            color=colour, linewidth=0.0, alpha=0.85,
        )  # fmt: skip
        lower = upper
    axes.set(ylim=(0.0, 1.0), xlim=(-0.5, len(posterior) - 0.5))
    axes.set_yticks([0.0, 0.5, 1.0])
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
