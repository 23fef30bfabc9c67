"""Tables as pictures: probabilities of levels, and means of many columns, by state."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from ember.inference.reports.drawing.emission import Emission

__all__ = ["draw_means", "draw_probabilities", "draw_signed", "probability_rows"]


MOST_ROWS = 40
FLAT = 6  # states up to which their names stand upright
READABLE = 12  # columns up to which numbers are written into the cells


def probability_rows(emission: Emission) -> tuple[list[str], Tensor]:
    """What is drawn of items: a row for each level (of yes-or-no items, for yes), ``(R, K)``."""
    probs = emission.means
    states, columns, levels = probs.shape
    if emission.kind == "parts":
        order = probs[:, 0].amax(0).argsort(descending=True)[:MOST_ROWS].sort().values
        return [f"{emission.site}[{int(i)}]" for i in order], probs[:, 0, order].T
    if levels == 2:
        return [f"{n} = {_level(emission, n, 1)}" for n in emission.columns], probs[..., 1].T
    names = [
        f"{name} = {_level(emission, name, level)}"
        for name in emission.columns
        for level in range(levels)
    ]
    return names, probs.reshape(states, columns * levels).T


def _level(emission: Emission, column: str, level: int) -> str:
    labels = emission.labels.get(column, ())
    return labels[level] if level < len(labels) else str(level)


def draw_probabilities(
    axes: Axes, names: Sequence[str], probs: Tensor, states: Sequence[str]
) -> None:
    """A cell for each state and level, the darker the more probable."""
    most = float(probs.max())
    _draw(axes, names, probs, states, "probability", (0.0, 1.0 if most > 0.5 else most))


def draw_means(axes: Axes, emission: Emission, states: Sequence[str]) -> None:
    """The mean of each column in each state; the colour is relative to the column's spread."""
    means = emission.means.reshape(emission.states, -1)
    rows = emission.rows
    centre = rows.nanmean(0)
    spread = (rows - centre).square().nanmean(0).sqrt().clamp_min(1e-300)
    scaled = ((means - centre) / spread).T
    limit = float(scaled.abs().max())
    label = "difference from the column's mean, in standard deviations"
    texts = [[f"{value:.3g}" for value in row] for row in means.T.tolist()]
    _draw(axes, emission.columns, scaled, states, label, (-limit, limit), texts)


def draw_signed(
    axes: Axes, names: Sequence[str], table: Tensor, heads: Sequence[str], label: str, limit: float
) -> None:
    """Numbers of both signs, with a bar of colours if that has a label."""
    texts = [[f"{value:.2f}" for value in row] for row in table.tolist()]
    _draw(axes, names, table, heads, label, (-limit, limit), texts)


def _draw(
    axes: Axes,
    names: Sequence[str],
    table: Tensor,
    states: Sequence[str],
    label: str,
    limits: tuple[float, float],
    texts: Sequence[Sequence[str]] | None = None,
) -> None:
    low, high = limits
    colours = "Blues" if low >= 0.0 else "RdBu_r"
    image = axes.imshow(table.cpu().numpy(), cmap=colours, vmin=low, vmax=high, aspect="auto")
    few = len(states) <= FLAT
    axes.set_xticks(
        range(len(states)), [state.replace(" (", "\n(") if few else state for state in states],
        rotation=0 if few else 45, ha="center" if few else "right",
    )  # fmt: skip
    step = max(-(-len(names) // MOST_ROWS), 1)
    axes.set_yticks(range(0, len(names), step), list(names)[::step])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(states) <= READABLE and len(names) <= MOST_ROWS:
        dark = np.abs(table.cpu().numpy()) > 0.6 * max(abs(low), abs(high))
        for (i, k), value in np.ndenumerate(table.cpu().numpy()):
            axes.text(
                k, i, texts[i][k] if texts else f"{value:.2f}",
                ha="center", va="center", fontsize=8, color="white" if dark[i, k] else "black",
            )  # fmt: skip
    figure = axes.get_figure()
    assert figure is not None
    if not label:
        return
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
