"""Marginal densities of parameters by several methods."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ember.inference.reports.drawing.picture import Picture
from ember.inference.reports.drawing.progress import method_style

__all__ = ["draw_marginals"]


COLUMNS = 4
REACH = (0.001, 0.999)  # quantiles of the draws that a panel shows
NO_SPREAD = 1e-12  # relative: all draws are the same


def draw_marginals(
    titles: Sequence[str],
    draws: Mapping[str, Sequence[Tensor | None]],
    points: Mapping[str, Sequence[float]],
) -> Figure:
    """A panel for each entry, a line for each method; an estimate without spread as a rule.

    Args:
        titles: The name of each entry.
        draws: Method to the draws of each entry; None where it has none.
        points: Method to the estimate of each entry.
    """
    columns = min(COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    figure = Picture(figsize=(3.0 * columns, 2.3 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for place, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        axes.set_title(title, fontsize=10)
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
        for i, method in enumerate(draws):
            _draw(axes, draws[method][place], points[method][place], i)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    handles = [Line2D([], [], **method_style(i), label=name) for i, name in enumerate(draws)]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(draws), 5), frameon=False,
        handlelength=3.2,
    )  # fmt: skip
    return figure


def _draw(axes: Axes, draws: Tensor | None, point: float, i: int) -> None:
    """The density of one method in one panel."""
    style = method_style(i)
    values = None if draws is None else draws.detach().double().cpu().numpy()
    if values is None or not np.isfinite(values).all() or _is_still(values):
        axes.axvline(point, **style)
        return
    low, high = np.quantile(values, REACH)
    along = np.linspace(low, high, 200)
    axes.plot(along, scipy.stats.gaussian_kde(values)(along), **style)


def _is_still(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= NO_SPREAD * (1.0 + np.abs(values).max()))
