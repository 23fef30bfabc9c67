"""Continuous latents: what is expected of each item along the latent, and where the rows stand."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import FigureBase
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from ember.inference.families.by_cell import LogitBernoulli, LogitCategorical
from ember.inference.families.discrete import Bernoulli, Categorical
from ember.inference.numerics.quadrature import HALF_WIDTH
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Params
from ember.inference.queries import prediction
from ember.inference.reports.drawing.effects import INTERVAL
from ember.inference.reports.drawing.palette import GREY, crowding, state_colours, thinned
from ember.inference.reports.fitted import Fitted, Sure

__all__ = ["draw_item_curves", "draw_positions", "has_item_curves", "has_positions"]


SHOWN = 3.5  # standard deviations of the prior, to each side
NAMED = 12  # items with an entry in the legend
POINTS = 200
BAND = 0.15  # how opaque


def has_item_curves(fit: Fitted) -> bool:
    """Whether a fit has one latent, of single numbers on nodes, with something computed from it."""
    plan = fit.plan
    if len(plan.structure.latent) != 1 or not plan.on_nodes:
        return False
    (nodes,) = plan.structure.nodes.values()
    return nodes.values.dim() == 1 and any(map(plan.is_computed, plan.structure.observed))


def has_positions(fit: Fitted) -> bool:
    """Whether a fit has one latent, of pairs of numbers on nodes."""
    nodes = list(fit.plan.structure.nodes.values())
    return len(fit.plan.structure.latent) == len(nodes) == 1 and nodes[0].values[0].numel() == 2


def draw_item_curves(figure: FigureBase, fit: Fitted, sure: Sure | None = None) -> None:
    """What is expected of each item along the latent; below, the posterior means of the rows."""
    (latent,) = fit.plan.structure.nodes
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    curves = [(site, *_curves(fit, site, sure)) for site in fit.plan.structure.observed
              if fit.plan.is_computed(site)]  # fmt: skip
    count = sum(values.shape[1] for _, _, values, *_ in curves)
    colours = iter(state_colours(count))
    for site, nodes, values, band, _ in curves:
        names = _item_names(fit, site, values.shape[1])
        middle, width = (nodes[0] + nodes[-1]) / 2, (nodes[-1] - nodes[0]) / 2
        reach = width * SHOWN / HALF_WIDTH
        line = np.linspace(middle - reach, middle + reach, POINTS)
        for item, name in enumerate(names):
            smooth = PchipInterpolator(nodes, values[:, item])(line)
            label = name if count <= NAMED else None
            colour = next(colours)
            top.plot(line, smooth, color=colour, linewidth=1.8, label=label)
            if band is not None and np.isfinite(band[..., item]).all():
                low, high = (PchipInterpolator(nodes, end)(line) for end in band[..., item])
                top.fill_between(line, low, high, color=colour, alpha=BAND, linewidth=0.0)
    kinds = {kind for *_, kind in curves}
    top.set_ylabel(kinds.pop() if len(kinds) == 1 else "expected value")
    if count <= NAMED:
        top.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    means = _means(fit)
    known = means[np.isfinite(means)]
    below.hist(known, bins=_bins(known, line), color=GREY)
    row = fit.plan.row_plate()
    below.set_ylabel("rows" if row is None else row[0])
    below.set_title("posterior means", fontsize="small", loc="left", pad=2.0)
    below.set_xlabel(latent)
    below.set_xlim(line[0], line[-1])
    for axes in (top, below):
        axes.spines[["top", "right"]].set_visible(False)


def draw_positions(figure: FigureBase, fit: Fitted) -> None:
    """The posterior means of the rows in the plane of a latent of two dims."""
    (latent,) = fit.plan.structure.nodes
    axes, means = figure.subplots(), _means(fit).reshape(-1, 2)
    shown = means[thinned(torch.arange(len(means))).cpu().numpy()]
    axes.plot(
        shown[:, 0], shown[:, 1], "o", color=state_colours(1)[0], markersize=4,
        markeredgewidth=0.0, alpha=crowding(len(shown)),
    )  # fmt: skip
    axes.set_xlabel(f"{latent}[0], posterior mean")
    axes.set_ylabel(f"{latent}[1]")
    axes.spines[["top", "right"]].set_visible(False)


def _curves(
    fit: Fitted, site: str, sure: Sure | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, str]:
    """The nodes ``(Q,)``, what is expected of each item there, ``(Q, J)``, a band, and a name.

    The band, ``(2, Q, J)``, is that of the logit where a probability has one.
    """
    plan = placed(fit.plan, fit.params)
    (nodes,) = plan.structure.nodes.values()
    tied = plan.tied[plan.compiled[site][0]]
    is_logit, kind = isinstance(tied.family, LogitBernoulli), "expected value"
    if isinstance(tied.family, (LogitBernoulli, Bernoulli)):
        kind = "probability of a 1"
    elif isinstance(tied.family, (LogitCategorical, Categorical)):
        kind = "expected level"

    def expected(params: Params) -> Tensor:
        values: Tensor = tied.parameters[0].values(params)
        if kind == "expected level":
            shares = values.softmax(-1) if isinstance(tied.family, LogitCategorical) else values
            values = shares @ torch.arange(shares.shape[-1]).to(shares)
        return values.reshape(-1)

    with torch.no_grad():
        table, band = expected(fit.params), None
        if sure is not None:
            half = INTERVAL * sure.errors_of(expected)
            ends = torch.stack([table - half, table + half])
            ends = (ends.sigmoid() if is_logit else ends).reshape(2, len(nodes.values), -1)
            band = ends.cpu().numpy()
        table = (table.sigmoid() if is_logit else table).reshape(len(nodes.values), -1)
    return nodes.values.cpu().numpy(), table.cpu().numpy(), band, kind


def _item_names(fit: Fitted, site: str, count: int) -> list[str]:
    names = fit.columns.get(site, ())
    if len(names) == count:
        return list(names)
    return [site] if count == 1 else [f"{site}[{item}]" for item in range(count)]


def _means(fit: Fitted) -> np.ndarray:
    """The posterior mean of each row."""
    found = prediction.predict(fit.plan, fit.params)
    assert isinstance(found, Tensor)
    return (found.reshape(-1, 2) if has_positions(fit) else found.reshape(-1)).cpu().numpy()


def _bins(values: np.ndarray, line: np.ndarray) -> np.ndarray:
    count = int(np.clip(np.sqrt(len(values)), 10, 60))
    return np.linspace(min(line[0], values.min()), max(line[-1], values.max()), count + 1)
