"""Colours of states, points and legends that all pictures share."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.typing import ColorType
from torch import Tensor

from ember.inference.reports.drawing.emission import Emission

__all__ = ["GREY", "crowding", "state_colours", "state_handles", "state_names", "thinned"]


# Okabe & Ito's palette: told apart with every kind of colour vision.
STATES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
GREY = "0.55"
MOST_POINTS = 5000


def state_colours(count: int) -> list[ColorType]:
    """A colour for each state; of many states, steps of a scale that is even in lightness."""
    if count <= len(STATES):
        return list(STATES[:count])
    return list(map(tuple, matplotlib.colormaps["viridis"](np.linspace(0.0, 0.95, count))))


def state_names(emission: Emission) -> list[str]:
    """Each state with its share of the rows."""
    if emission.latent is None or emission.states == 1:
        return [emission.site]
    shares = emission.shares.tolist()
    return [f"{emission.latent} {k} ({100 * share:.0f} %)" for k, share in enumerate(shares)]


def state_handles(names: Sequence[str], line: bool = False) -> list[Line2D]:
    """Entries of a legend."""
    handles = []
    for colour, name in zip(state_colours(len(names)), names, strict=True):
        if line:
            handles.append(Line2D([], [], color=colour, label=name, linewidth=2.0))
        else:
            handles.append(
                Line2D([], [], color=colour, label=name, marker="o", markersize=6, linestyle="")
            )
    return handles


def crowding(rows: int) -> float:
    """Opacity of points, so that many of them show where they are dense."""
    return float(np.clip(300.0 / max(rows, 1), 0.15, 0.8))


def thinned(rows: Tensor) -> Tensor:
    """Positions of the rows that are drawn: all, or evenly spaced ones of very many."""
    return rows[:: max(-(-len(rows) // MOST_POINTS), 1)]
