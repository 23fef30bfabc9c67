"""The way of every start: how far below the best each was after each step."""

from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ember.inference.iteration.restarts.record import Starts
from ember.inference.reports.drawing.palette import GREY, STATES
from ember.inference.reports.drawing.picture import Picture

__all__ = ["draw_starts"]


SMALLEST = 1e-6  # a distance that is of no interest to anyone
REACHED, ELSEWHERE, *_ = STATES
DEGENERATE = STATES[5]
Dashes = Literal["solid", "dashed", "dotted"]
Style = tuple[str, Dashes, float]  # with colour and width


def draw_starts(starts: Starts) -> Figure:
    """A line for each start; those that ended at the best objective stand out.

    Raises:
        ValueError: If there was one start, or its way was not recorded.
    """
    if len(starts) < 2 or not len(starts.histories):
        raise ValueError("there was one start only; EM(model, restarts=10) makes more.")
    figure = Picture(figsize=(6.5, 4.0), layout="constrained")
    axes, shown = figure.subplots(), dict[str, Style]()
    for i, history in enumerate(starts.histories):
        if not len(history):
            continue  # the data have no finite density there
        label, (colour, dashes, width) = _style(starts, i)
        shown[label] = (colour, dashes, width)
        gap = np.maximum(starts.best - history.cpu().numpy(), SMALLEST)
        axes.plot(gap, color=colour, linestyle=dashes, linewidth=width, alpha=0.8)
        axes.plot(len(gap) - 1, gap[-1], "o", color=colour, markersize=4, clip_on=False)
    axes.set(yscale="log", xlabel="step", ylabel="objective: distance below the best (nats)")
    axes.set_ylim(bottom=SMALLEST)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(which="major", color="0.9", zorder=0)
    axes.set_title(f"{len(starts)} starts, {starts.reached} of them at the best objective")
    handles = [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=width, label=label)
        for label, (colour, dashes, width) in shown.items()
    ]
    axes.legend(handles=handles, frameon=False)
    return figure


def _style(starts: Starts, i: int) -> tuple[str, Style]:
    """What became of one start, and how it is drawn."""
    if starts.degenerate[i]:
        return "degenerated", (DEGENERATE, "dotted", 1.4)
    if not starts.carried[i]:
        return "left after the short run", (GREY, "solid", 1.0)
    if abs(float(starts.objectives[i]) - starts.best) <= starts.tolerance:
        return "ended at the best", (REACHED, "solid", 2.0)
    return "ended elsewhere", (ELSEWHERE, "dashed", 1.6)
