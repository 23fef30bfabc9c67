"""Hidden factors: how strongly each column follows each of them, and where the rows lie."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from torch import Tensor

from ember.inference.reports.drawing.heat_maps import draw_signed
from ember.inference.reports.drawing.palette import crowding, state_colours, state_handles, thinned

__all__ = ["draw_loadings", "draw_scores"]


def draw_loadings(
    figure: FigureBase, columns: Sequence[str], loadings: Tensor, name: str, states: Sequence[str]
) -> None:
    """A table of loadings for each state.

    Args:
        figure: Where to draw.
        columns: Names of the ``D`` columns.
        loadings: ``(S, D, q)``.
        name: The latent.
        states: What each of the ``S`` states is called.
    """
    panels = figure.subplots(1, len(loadings), sharey=True, squeeze=False)[0]
    limit = float(loadings.abs().max())
    factors = [f"{name}[{k}]" for k in range(loadings.shape[-1])]
    for s, axes in enumerate(panels):
        last = s == len(panels) - 1
        draw_signed(axes, columns, loadings[s], factors, "loading" if last else "", limit)
        if len(panels) > 1:
            axes.set_title(states[s], fontsize=10)


def draw_scores(
    axes: Axes, name: str, scores: Tensor, state: Tensor | None, states: Sequence[str]
) -> None:
    """The posterior means of the first two factors of each row; of a single one a histogram.

    Args:
        axes: Where to draw.
        name: The latent.
        scores: ``(N, q)``.
        state: The most probable state of each row, if there are states.
        states: What each state is called; of a single one the name is not shown.
    """
    colours = state_colours(len(states))
    if state is not None:
        axes.legend(handles=state_handles(states), loc="best", fontsize=8, frameon=False)
    own = torch.zeros(len(scores), dtype=torch.long) if state is None else state
    if scores.shape[1] == 1:
        parts = [scores[own == k, 0].cpu().numpy() for k in range(len(colours))]
        axes.hist(parts, bins=30, stacked=True, color=colours)
        axes.set(xlabel=f"{name}: posterior mean", ylabel="rows")
        return
    rows = thinned(torch.arange(len(scores)))
    for k, colour in enumerate(colours):
        inside = scores[rows][own[rows] == k].cpu().numpy()
        axes.plot(
            inside[:, 0], inside[:, 1], "o", color=colour, markersize=4.0, markeredgewidth=0.0,
            alpha=crowding(len(rows)),
        )  # fmt: skip
    axes.axhline(0.0, color="0.85", linewidth=0.8, zorder=0)
    axes.axvline(0.0, color="0.85", linewidth=0.8, zorder=0)
    axes.set(xlabel=f"{name}[0]: posterior mean", ylabel=f"{name}[1]: posterior mean")
