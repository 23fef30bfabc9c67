"""Residuals against what is expected, and normal quantiles; the calibration of yes and no."""

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ember.inference.reports.drawing.palette import GREY, STATES, crowding, thinned
from ember.inference.reports.drawing.picture import Picture
from ember.inference.reports.residuals import Residuals

__all__ = ["draw_residuals"]


BINS = 10  # of expected probabilities
LEAST = 8  # rows in a bin, where there are enough
TAIL = 0.025  # on each side of a 95 % band


def draw_residuals(sites: list[Residuals]) -> Figure:
    """A row of panels for each site; see ``Fit.plot_residuals``."""
    figure = Picture(figsize=(9.0, 3.9 * len(sites)), layout="constrained")
    panels = figure.subplots(len(sites), 2, squeeze=False)
    for (left, right), site in zip(panels, sites, strict=True):
        if site.is_yes_or_no:
            _calibration(left, site)
        else:
            _against_expected(left, site)
        _quantiles(right, site)
    return figure


def _against_expected(axes: Axes, site: Residuals) -> None:
    rows = thinned((~site.values.isnan()).nonzero().reshape(-1))
    axes.axhline(0.0, color=GREY, linewidth=1.0, zorder=1)
    axes.plot(
        site.expected[rows].cpu().numpy(), site.values[rows].cpu().numpy(), "o", color=STATES[0],
        markersize=4.0, markeredgewidth=0.0, alpha=crowding(len(rows)), zorder=2,
    )  # fmt: skip
    axes.set(xlabel=f"expected {site.name}", ylabel="residual, in standard deviations")


def _quantiles(axes: Axes, site: Residuals) -> None:
    """Sorted residuals against those of a normal, with the band in which 95 % of each lie."""
    values = np.sort(site.values[~site.values.isnan()].cpu().numpy())
    count = len(values)
    place = np.arange(1, count + 1)
    normal = scipy.stats.norm.ppf((place - 0.5) / count)
    low, high = (
        scipy.stats.norm.ppf(scipy.stats.beta.ppf(tail, place, count + 1 - place))
        for tail in (TAIL, 1.0 - TAIL)
    )
    axes.fill_between(normal, low, high, color="0.88", linewidth=0.0, zorder=0)
    axes.plot(normal[[0, -1]], normal[[0, -1]], color=GREY, linewidth=1.0, zorder=1)
    axes.plot(normal, values, "o", color=STATES[0], markersize=3.5, markeredgewidth=0.0, zorder=2)
    axes.set(xlabel="quantile of the normal", ylabel=f"sorted residual of {site.name}")


def _calibration(axes: Axes, site: Residuals) -> None:
    """The share of yes among rows of like probability, with Wilson's 95 % intervals."""
    known = ~site.data.isnan()
    expected, seen = site.expected[known].cpu().numpy(), site.data[known].cpu().numpy()
    bins = max(min(BINS, len(seen) // LEAST), 1)
    groups = np.array_split(np.argsort(expected, kind="stable"), bins)
    at = [expected[rows].mean() for rows in groups]
    share = np.array([seen[rows].mean() for rows in groups])
    ends = np.array(
        [
            scipy.stats.binomtest(int(seen[rows].sum()), len(rows)).proportion_ci(method="wilson")
            for rows in groups
        ]
    )
    axes.plot([0.0, 1.0], [0.0, 1.0], color=GREY, linewidth=1.0, zorder=1)
    axes.vlines(at, ends[:, 0], ends[:, 1], color=GREY, linewidth=1.6, zorder=2)
    axes.plot(at, share, "o", color=STATES[0], markersize=5.0, zorder=3)
    axes.set(
        xlabel=f"expected probability of {site.name}", ylabel=f"share of {site.name}",
        xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
    )  # fmt: skip
