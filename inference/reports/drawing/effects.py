"""Effects of groups: their posterior means in order with intervals, and the data they lead to."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from torch import Tensor

from ember.inference.reports.drawing.palette import GREY, STATES, crowding, thinned

__all__ = ["INTERVAL", "Panel", "draw_effects", "effect_height", "fitted_panel"]


Panel = tuple[float, float, Callable[[FigureBase], object]]  # width, height, and the drawing
INTERVAL = 1.959963984540054  # standard deviations to each side of a 95 % interval
NAMED = 30  # levels up to which each is named


def effect_height(levels: int) -> float:
    """Inches for so many levels."""
    return min(max(1.4 + 0.16 * levels, 3.6), 7.0)


def draw_effects(
    figure: FigureBase,
    name: str,
    mean: Tensor,
    deviation: Tensor,
    axes_names: Mapping[int, Sequence[str]],
) -> None:
    """A caterpillar: levels by the mean of their first effect, a panel for each effect.

    Args:
        figure: Where to draw.
        name: The latent.
        mean: ``(levels, effects)``.
        deviation: The same of standard deviations.
        axes_names: What levels (0) and effects (1) are called, where that is known.
    """
    levels, effects = mean.shape
    order = mean[:, 0].argsort()
    panels = figure.subplots(1, effects, sharey=True, squeeze=False)[0]
    places = np.arange(levels)
    for k, axes in enumerate(panels):
        centre, half = mean[order, k].cpu().numpy(), INTERVAL * deviation[order, k].cpu().numpy()
        axes.axvline(0.0, color="0.8", linewidth=1.0, zorder=1)
        width = 1.6 if levels <= 100 else 0.6
        axes.hlines(places, centre - half, centre + half, color=GREY, linewidth=width, zorder=2)
        size = 4.5 if levels <= 100 else 1.8
        axes.plot(centre, places, "o", color=STATES[0], markersize=size, zorder=3)
        effect = axes_names[1][k] if 1 in axes_names else str(k)
        axes.set_xlabel(name if effects == 1 else f"{name}[{effect}]")
        axes.set_ylim(-0.7, levels - 0.3)
    if levels <= NAMED:
        called = axes_names.get(0, range(levels))
        panels[0].set_yticks(places, [str(called[int(i)]) for i in order])
    else:
        panels[0].set_yticks([])
    panels[0].set_ylabel("level")
    panels[effects // 2 if effects % 2 else 0].set_title("means and 95 % intervals", fontsize=10)


def fitted_panel(names: Sequence[str], data: Tensor, fitted: Tensor) -> Panel:
    """The panel of the data against what is expected of them."""
    return 4.8, 4.2, lambda figure: draw_fitted(figure.subplots(), names, data, fitted)


def draw_fitted(axes: Axes, names: Sequence[str], data: Tensor, fitted: Tensor) -> None:
    """The data against what is expected of them, effects included; a line where they are equal."""
    shown = ~data.isnan()
    rows = thinned(shown.nonzero().reshape(-1))
    expected, seen = fitted[rows].cpu().numpy(), data[rows].cpu().numpy()
    axes.plot(
        expected, seen, "o", color=STATES[0], markersize=4.0, markeredgewidth=0.0,
        alpha=crowding(len(rows)),
    )  # fmt: skip
    ends = [min(expected.min(), seen.min()), max(expected.max(), seen.max())]
    axes.plot(ends, ends, color=GREY, linewidth=1.0, zorder=0)
    axes.set(xlabel=f"expected {names[0]}", ylabel=names[0])
