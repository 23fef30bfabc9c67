"""Hidden paths of Gaussian chains: their means over time with bands, and the data beside them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ember.inference.reports.drawing.effects import INTERVAL
from ember.inference.reports.drawing.palette import GREY, STATES

__all__ = ["draw_paths"]


def draw_paths(
    figure: FigureBase,
    names: Sequence[str],
    mean: Tensor,
    deviation: Tensor,
    data: Mapping[int, tuple[str, Tensor]],
) -> None:
    """A panel for each path: its mean, a band of 95 %, and the data that it is the mean of.

    Args:
        figure: Where to draw.
        names: What each path is called.
        mean: ``(paths, T)``.
        deviation: The same of standard deviations.
        data: For some paths the name of the data and their values ``(T,)``.
    """
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    steps = np.arange(mean.shape[1])
    for i, axes in enumerate(panels):
        centre, half = mean[i].cpu().numpy(), INTERVAL * deviation[i].cpu().numpy()
        label = names[i]
        if i in data:
            site, values = data[i]
            sparse = len(steps) <= 400
            axes.plot(
                steps, values.cpu().numpy(), "o", color=GREY, markersize=3.5 if sparse else 1.5,
                markeredgewidth=0.0, zorder=1,
            )  # fmt: skip
            label = f"{site} (points), {label}"
        axes.fill_between(
            steps, centre - half, centre + half, color=STATES[0], alpha=0.22, linewidth=0.0
        )
        axes.plot(steps, centre, color=STATES[0], linewidth=1.8, zorder=3)
        axes.set_ylabel(label)
        axes.margins(x=0.01)
    panels[0].set_title("posterior mean and 95 % band", fontsize=10)
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    figure.align_ylabels(list(panels))
