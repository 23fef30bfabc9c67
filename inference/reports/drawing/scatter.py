"""Several columns: points in the colour of their state, with the components as ellipses."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import ColorType
from torch import Tensor

from ember.inference.reports.drawing.densities import draw_density
from ember.inference.reports.drawing.emission import Emission
from ember.inference.reports.drawing.palette import crowding, state_colours, thinned

__all__ = ["draw_pairs", "draw_plane", "draw_points"]


DEVIATIONS = 2.0
TINY = 1e-9


def draw_points(
    axes: Axes, emission: Emission, pair: tuple[int, int], labelled: bool = True
) -> None:
    """Two columns against each other."""
    x = emission.rows[:, list(pair)]
    means = emission.means.reshape(emission.states, -1)[:, list(pair)]
    spread = None
    if emission.kind == "real" and emission.covariances is not None:
        spread = emission.covariances[:, list(pair)][:, :, list(pair)]
    _draw(axes, x, emission.row_posterior, means, spread)
    if labelled:
        axes.set(xlabel=emission.columns[pair[0]], ylabel=emission.columns[pair[1]])


def _draw(axes: Axes, x: Tensor, posterior: Tensor, means: Tensor, spread: Tensor | None) -> None:
    states = posterior.shape[-1]
    colours = np.array(state_colours(states), dtype=object)
    complete = thinned((~x.isnan().any(-1)).nonzero().reshape(-1))
    best = posterior[complete].argmax(-1).cpu().numpy()
    # One call for each state, the largest first: no point hides a smaller group by its order.
    for k in sorted(range(states), key=lambda k: -int((best == k).sum())):
        rows = x[complete][best == k]
        axes.plot(
            *rows.T.cpu().numpy(), "o", color=colours[k], markersize=3.5, markeredgewidth=0.0,
            alpha=crowding(len(complete)), zorder=1,
        )  # fmt: skip
    for k in range(states):
        if spread is not None:
            _draw_ellipse(axes, means[k], spread[k], colours[k])
        axes.plot(
            *means[k].reshape(2, 1).cpu().numpy(), "P", color=colours[k], markersize=8,
            markeredgecolor="white", markeredgewidth=1.0, zorder=4,
        )  # fmt: skip
    axes.autoscale_view()
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _draw_ellipse(axes: Axes, mean: Tensor, covariance: Tensor, colour: ColorType) -> None:
    variances, directions = np.linalg.eigh(covariance.cpu().numpy())
    width, height = 2.0 * DEVIATIONS * np.sqrt(np.maximum(variances, 0.0))
    angle = float(np.degrees(np.arctan2(directions[1, 0], directions[0, 0])))
    centre = (float(mean[0]), float(mean[1]))
    for line, edge in ((3.2, "white"), (1.8, colour)):
        ellipse = Ellipse(
            centre, width, height, angle=angle, fill=False, linewidth=line, edgecolor=edge, zorder=3
        )
        axes.add_patch(ellipse)


def draw_pairs(figure: FigureBase, emission: Emission) -> None:
    """All pairs of columns below the diagonal, on which each has its histogram."""
    count = len(emission.columns)
    grid = figure.subplots(count, count, sharex="col", squeeze=False)
    for i in range(count):
        for j in range(count):
            axes = grid[i, j]
            if j > i:
                axes.set_axis_off()
            elif j == i:
                draw_density(axes, emission, i)
                axes.set_yticks([])
                axes.set(ylabel="", xlabel="")
                axes.spines[["top", "right", "left"]].set_visible(False)
            else:
                draw_points(axes, emission, (j, i), labelled=False)
                if j:
                    axes.tick_params(labelleft=False)
            if i == count - 1:
                axes.set_xlabel(emission.columns[j])
            if j == 0 and i:
                axes.set_ylabel(emission.columns[i])
    figure.align_ylabels(list(grid[:, 0]))


def draw_plane(axes: Axes, emission: Emission, rows: Tensor) -> None:
    """The data seen from where the components are farthest apart.

    The plane of the first two discriminant directions; with two components the second axis is
    the direction in which the rest of the data vary most.

    Reference: Fisher (1936), *The use of multiple measurements in taxonomic problems*.
    """
    means = emission.means.reshape(emission.states, -1)
    assert emission.covariances is not None
    plane, names = _plane(rows, emission.shares, means, emission.covariances, emission.columns)
    spread = plane.mT @ emission.covariances @ plane
    centre = emission.shares @ means
    _draw(axes, (rows - centre) @ plane, emission.row_posterior, (means - centre) @ plane, spread)
    axes.set(xlabel=names[0], ylabel=names[1])


def _plane(
    rows: Tensor, shares: Tensor, means: Tensor, covariances: Tensor, columns: Sequence[str]
) -> tuple[Tensor, list[str]]:
    """Two directions ``(D, 2)``, orthogonal in units of the spread within components."""
    within = torch.einsum("k,kij->ij", shares, covariances)
    root = torch.linalg.cholesky(within)
    apart = torch.linalg.solve_triangular(root, (means - shares @ means).T, upper=False).T
    between = torch.einsum("k,ki,kj->ij", shares, apart, apart)
    values, vectors = torch.linalg.eigh(between)
    directions = [vectors[:, -i] for i in (1, 2) if values[-i] > TINY * values[-1].clamp_min(TINY)]
    names = [f"discriminant {i + 1}" for i in range(len(directions))]
    white = torch.linalg.solve_triangular(root, (rows - rows.mean(0)).T, upper=False)
    while len(directions) < 2:
        for direction in directions:
            white = white - torch.outer(direction, direction @ white)
        directions.append(torch.linalg.svd(white, full_matrices=False)[0][:, 0])
        names.append(f"principal axis {len(directions)}")
    plane = torch.linalg.solve_triangular(root.mT, torch.stack(directions, -1), upper=True)
    # What moves along an axis: the column that goes with it most closely.
    scores, centred = (rows - rows.mean(0)) @ plane, rows - rows.mean(0)
    loads = (centred.T @ scores).abs() / centred.norm(dim=0).unsqueeze(-1).clamp_min(1e-300)
    return plane, [
        f"{name} (mainly {columns[int(loads[:, i].argmax())]})" for i, name in enumerate(names)
    ]
