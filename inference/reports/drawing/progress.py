"""How fast fits climbed: the distance of each from the best value of its objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ember.inference.reports.fitted import Fitted

__all__ = ["draw_progress", "method_style"]


# Okabe & Ito's palette: told apart with every kind of colour vision. Dashes and widths tell lines
# apart that lie on one another, as they do where the methods agree.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


STYLES: tuple[tuple[float, str | tuple[int, tuple[float, ...]]], ...] = (
    (4.0, "solid"),
    (2.4, (0, (5, 2))),
    (2.0, (0, (1, 1.5))),
    (1.6, (0, (6, 2, 1, 2))),
)


ALPHAS = (0.5, 0.9, 1.0, 1.0)
SMALLEST_GAP = 1e-6  # below this, differences of objectives are of no interest to anyone


def method_style(i: int) -> dict[str, Any]:
    """How the lines of the i-th method are drawn."""
    width, dashes = STYLES[i % len(STYLES)]
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linewidth": width,
        "linestyle": dashes,
        "alpha": ALPHAS[i % len(ALPHAS)],
    }


def draw_progress(axes: Axes, fits: Mapping[str, Fitted]) -> None:
    """How far below the best value of its objective each fit was: one by iterations, more by time.

    The time of a single fit is mostly that of reading the model, so that all its iterations would
    stand on one spot of an axis of time.
    """
    curves = {name: _curve(fit) for name, fit in fits.items()}
    best: dict[str, float] = {}
    for name, fit in fits.items():
        kind = _objective(fit)
        best[kind] = max(best.get(kind, -np.inf), curves[name].best)
    alone = len(fits) == 1
    for i, (name, fit) in enumerate(fits.items()):
        gap = np.maximum(best[_objective(fit)] - curves[name].values, curves[name].floor)
        along = np.arange(len(gap)) if alone else fit.times.cpu().numpy()
        marker = "o" if alone and len(gap) <= 50 else ""
        axes.plot(along, gap, **method_style(i), marker=marker, markersize=5, zorder=2 + i)
        axes.plot(
            along[-1], gap[-1], "o", color=method_style(i)["color"], markersize=7, zorder=10 + i,
            clip_on=False,
        )  # fmt: skip
    axes.set(yscale="log")
    axes.set_ylim(bottom=SMALLEST_GAP)
    axes.set_ylabel("objective: distance below its best value (nats)")
    axes.grid(which="major", color="0.9", zorder=0)
    axes.tick_params(axis="x", pad=7)  # clear of the lowest number of the other axis
    if alone:
        (fit,) = fits.values()
        what = "iteration" if fit.guide is None else "step"
        axes.set_xlabel(f"{what} ({_duration(fit)} in all)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title("How the fit reached its optimum")
        return
    _set_time(axes, [float(t) for fit in fits.values() for t in (fit.times[0], fit.times[-1])])
    axes.set_title("How fast each fit reached its optimum")


def _duration(fit: Fitted) -> str:
    seconds = fit.seconds if np.isfinite(fit.seconds) else float(fit.times[-1])
    return f"{seconds:.2g} s" if seconds < 10.0 else f"{seconds:.0f} s"


def _set_time(axes: Axes, ends: Sequence[float]) -> None:
    """An axis of time: in decades if fits differ by as much, else plain."""
    axes.set_xlabel("seconds since the start of the fit")
    if max(ends) < 10.0 * min(ends):
        axes.set_xlim(0.0, 1.05 * max(ends))
        return
    axes.set_xscale("log")
    # Whole decades, so that the axis has few and readable numbers.
    axes.set_xlim(
        *(10.0 ** f(np.log10(t)) for f, t in ((np.floor, min(ends)), (np.ceil, max(ends))))
    )


@dataclass(frozen=True)
class Curve:
    """An objective over time, the best value it reached, and the smallest gap to show."""

    values: np.ndarray
    best: float
    floor: float


def _curve(fit: Fitted) -> Curve:
    history = fit.history.cpu().numpy()
    if _is_exact(fit) or len(history) < 20:
        return Curve(history, float(history.max()), SMALLEST_GAP)
    # A bound estimated from draws: a running mean shows its course. Its last values say where it
    # ends, and how far apart two of its means may be by chance: no smaller gap means anything.
    window = max(len(history) // 20, 5)
    total = np.cumsum(np.insert(history, 0, 0.0))
    ends = np.arange(1, len(history) + 1)
    begins = np.maximum(ends - window, 0)
    last = history[-2 * window :]
    noise = float(last.std()) / np.sqrt(window)
    values = (total[ends] - total[begins]) / (ends - begins)
    return Curve(values, float(last.mean()), max(noise, SMALLEST_GAP))


def _is_exact(fit: Fitted) -> bool:
    """Whether the history holds the objective itself, not an estimate from draws of a guide."""
    return fit.guide is None or fit.guide.is_delta


def _objective(fit: Fitted) -> str:
    """What a fit climbs; only fits that climb the same thing can be measured against each other."""
    if fit.plan.unconstrained:  # also of methods that go on from its mode
        return f"{fit.objective}, unconstrained"
    return fit.method if fit.has_posterior or not _is_exact(fit) else fit.objective
