"""Pictures of fits: the data with the fitted components, and how fast each fit climbed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ember.inference.expectation.posterior import marginals
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims
from ember.inference.plan.plan import Plan
from ember.inference.reading.site import Site
from ember.inference.reports.drawing.picture import Picture
from ember.inference.reports.drawing.progress import draw_progress, method_style
from ember.inference.reports.fitted import Fitted

__all__ = ["draw_fits"]


DEVIATIONS = 2.0
Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class Components:
    """The components of a mixture: what is drawn of them."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


def draw_fits(
    fits: Mapping[str, Fitted], params: Mapping[str, Params], labels: Sequence[str] | None = None
) -> Figure:
    """One picture of several fits, a colour for each.

    Where the model is a mixture of one site in one or two dimensions, the left panel shows the
    data with the fitted density, or with an ellipse for each component. The other panel shows
    how far each fit's objective was below the best value that any fit reached of it, against
    time (of a single fit: iterations); a bound that is estimated from draws is shown as a running
    mean, down to its noise.

    Args:
        fits: Name of the method to its fit; the first one's data are shown.
        params: Name of the method to the estimates to draw, states aligned.
        labels: Names of the columns of the data.
    """
    plan = next(iter(fits.values())).plan
    data = _data(plan)
    figure = Picture(figsize=(11.0 if data is not None else 6.5, 4.8), layout="constrained")
    panels = figure.subplots(1, 1 if data is None else 2, squeeze=False)[0]
    if data is not None:
        names = list(labels or [])
        if len(names) != data.shape[1]:
            site = plan.structure.observed[0]
            names = [site] if data.shape[1] == 1 else [f"{site}[{i}]" for i in range(2)]
        draw = _draw_density if data.shape[1] == 1 else _draw_ellipses
        draw(panels[0], data, plan, fits, params, names)
    draw_progress(panels[-1], fits)
    handles = [Line2D([], [], **method_style(i), label=name) for i, name in enumerate(fits)]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(fits), 4), frameon=False,
        handlelength=3.2,
    )  # fmt: skip
    return figure


# -- the data -----------------------------------------------------------------------------------
def _data(plan: Plan) -> Tensor | None:
    """The rows of the one observed site, ``(N, 1)`` or ``(N, 2)``; None if there is no picture."""
    structure = plan.structure
    if len(structure.observed) != 1 or len(structure.latent) != 1 or plan.row is None:
        return None
    site = plan.sites[plan.structure.observed[0]]
    if site.density is None or site.mask is not None or set(site.plates) != {plan.row}:
        return None
    if site.slots:  # what its components are depends on Gaussian latents as well
        return None
    outer = site.value.shape[: site.value.dim() - site.event_dim]
    rows = site.value.reshape(outer.numel(), -1)
    if outer.numel() != plan.sizes[plan.row] or rows.shape[1] not in (1, 2):
        return None
    if rows.shape[1] == 2 and site.density.base.support.is_discrete:
        return None
    start = plan.structure.start
    return rows.to(torch.float64) if _batch(plan, site, start) is not None else None


def _batch(plan: Plan, site: Site, params: Params) -> Distribution | None:
    """The site's base distribution if it varies with the latent alone, else None."""
    assert site.density is not None
    fn = site.density.distribution(params)
    symbol = plan.latent_symbols[plan.structure.latent[0]]
    inner = len(site.inner_shape)
    batch = (1,) * (len(site.layout.outer) + inner - len(fn.batch_shape)) + tuple(fn.batch_shape)
    for name, size in zip(site.layout.outer, batch[: len(batch) - inner], strict=True):
        if size > 1 and name != symbol:
            return None
    return fn if symbol in site.layout.outer or plan.sizes.get(symbol, 1) == 1 else None


def _components(plan: Plan, params: Params) -> Components:
    """Weights ``(K,)``, means ``(K, D)`` and covariances ``(K, D, D)`` of the fitted mixture."""
    site = plan.sites[plan.structure.observed[0]]
    fn = _batch(plan, site, params)
    assert fn is not None
    inner, event = len(site.inner_shape), len(fn.event_shape)
    dim = int(np.prod(site.value.shape[site.value.dim() - inner - event :] or (1,)))
    full = torch.Size((*fn.batch_shape, *fn.event_shape))
    tail = broadcast_shapes(full[len(full) - inner - event :], site.inner_shape)
    if event:
        tail = torch.Size((*site.inner_shape, *fn.event_shape))
    lead = full[: len(full) - inner - event]
    means = fn.mean.expand((*lead, *tail)).reshape(-1, dim)
    if event and hasattr(fn, "covariance_matrix"):
        covariances = fn.covariance_matrix.reshape(-1, dim, dim)
    else:
        covariances = torch.diag_embed(fn.variance.expand((*lead, *tail)).reshape(-1, dim))
    return Components(_weights(plan, params), means, covariances.expand(len(means), dim, dim))


def _weights(plan: Plan, params: Params) -> Tensor:
    """Prior probability of every state, averaged over the rows."""
    name = plan.structure.latent[0]
    site, symbol = plan.sites[name], plan.latent_symbols[name]
    if symbol not in site.layout.outer:
        return torch.ones(1)
    if site.density is None:
        return marginals(plan, params, [name])[name].reshape(-1, plan.sizes[symbol]).mean(0)
    log_prob = prepend_dims(site.density.log_prob(params, site.value), len(site.layout.outer))
    probs = log_prob.exp().movedim(site.layout.outer.index(symbol), 0)
    return probs.reshape(len(probs), -1).mean(1)


def _draw_ellipses(
    axes: Axes,
    data: Tensor,
    plan: Plan,
    fits: Mapping[str, Fitted],
    params: Mapping[str, Params],
    labels: Sequence[str],
) -> None:
    axes.plot(
        *data.T.cpu().numpy(), ".", color="0.55", markersize=4, alpha=_crowding(len(data)), zorder=1
    )
    for i, name in enumerate(fits):
        with torch.no_grad():
            components = _components(fits[name].plan, params[name])
        style = method_style(i)
        for mean, covariance in zip(components.means, components.covariances, strict=True):
            variances, directions = np.linalg.eigh(covariance.cpu().numpy())
            width, height = 2.0 * DEVIATIONS * np.sqrt(np.maximum(variances, 0.0))
            angle = float(np.degrees(np.arctan2(directions[1, 0], directions[0, 0])))
            ellipse = Ellipse(
                (float(mean[0]), float(mean[1])), width, height, angle=angle, fill=False,
                edgecolor=style["color"], linewidth=style["linewidth"],
                linestyle=style["linestyle"], alpha=style["alpha"], zorder=2 + i,
            )  # fmt: skip
            axes.add_patch(ellipse)
        axes.plot(
            *components.means.T.cpu().numpy(), "+", color=style["color"], markersize=10,
            markeredgewidth=style["linewidth"], alpha=style["alpha"], zorder=2 + i,
        )  # fmt: skip
    axes.autoscale_view()
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.set_title(f"Data and components (ellipses: {DEVIATIONS:g} standard deviations)")


def _draw_density(
    axes: Axes,
    data: Tensor,
    plan: Plan,
    fits: Mapping[str, Fitted],
    params: Mapping[str, Params],
    labels: Sequence[str],
) -> None:
    site = plan.sites[plan.structure.observed[0]]
    assert site.density is not None
    values = data[:, 0].cpu().numpy()
    scale = plan.scales[site.name]
    weights = None if scale is None else scale.tensor.expand(len(values)).cpu().numpy()
    discrete = bool(site.density.base.support.is_discrete)
    low, high = float(values.min()), float(values.max())
    if discrete:
        grid = torch.arange(low, high + 1.0, dtype=torch.float64)
        bins: list[float] | str | int = np.arange(low - 0.5, high + 1.5).tolist()
    else:
        margin = 0.05 * (high - low)
        grid = torch.linspace(low - margin, high + margin, 400, dtype=torch.float64)
        bins = "auto" if weights is None else 30
    axes.hist(values, bins=bins, weights=weights, density=True, color="0.85", edgecolor="white")
    for i, name in enumerate(fits):
        with torch.no_grad():
            density = _mixture_density(fits[name].plan, params[name], grid)
        axes.plot(
            grid.cpu().numpy(), density.cpu().numpy(), **method_style(i),
            marker="o" if discrete else "", markersize=4, zorder=2 + i,
        )  # fmt: skip
    axes.set(xlabel=labels[0], ylabel="relative frequency" if discrete else "density")
    axes.xaxis.set_major_locator(MaxNLocator(integer=discrete))
    axes.set_title("Data and fitted " + ("probabilities" if discrete else "density"))


def _mixture_density(plan: Plan, params: Params, grid: Tensor) -> Tensor:
    """The density of one new row at each point of a grid, ``(G,)``."""
    site = plan.sites[plan.structure.observed[0]]
    fn = _batch(plan, site, params)
    assert fn is not None
    tail = len(site.inner_shape) + len(fn.event_shape)
    # The grid takes a dim of its own on the left; every other dim but the latent's has size 1.
    rank = len(fn.batch_shape) + len(fn.event_shape)
    log_prob = fn.log_prob(grid.reshape(-1, *(1,) * max(rank, tail)))
    by_state = log_prob.exp().reshape(len(grid), -1)
    return by_state @ _weights(plan, params).to(by_state.dtype)


def _crowding(rows: int) -> float:
    """Opacity of points, so that many of them show where they are dense."""
    return float(np.clip(300.0 / rows, 0.08, 0.8))
