"""The picture of one fit: which kinds of panels suit its sites, and where they stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from torch import Tensor

from ember.inference.queries import imputation, prediction
from ember.inference.reports.drawing.chains import SEQUENCES, draw_chain, panel_count
from ember.inference.reports.drawing.densities import draw_density, mixture_handle
from ember.inference.reports.drawing.emission import Emission
from ember.inference.reports.drawing.emissions import read_emissions
from ember.inference.reports.drawing.gaussian_latents import gaussian_panels
from ember.inference.reports.drawing.heat_maps import (
    draw_means,
    draw_probabilities,
    probability_rows,
)
from ember.inference.reports.drawing.item_curves import (
    draw_item_curves,
    draw_positions,
    has_item_curves,
    has_positions,
)
from ember.inference.reports.drawing.palette import state_handles, state_names
from ember.inference.reports.drawing.picture import Picture
from ember.inference.reports.drawing.regressions import (
    across,
    covariates_of,
    draw_expected,
    draw_lines,
)
from ember.inference.reports.drawing.scatter import draw_pairs, draw_plane, draw_points
from ember.inference.reports.drawing.unit_effects import unit_panels
from ember.inference.reports.fitted import Fitted, Sure

__all__ = ["draw_fit"]


PAIRS = 5  # columns up to which every pair has a panel
WIDEST, TALLEST = 16.0, 11.0
ENTRY = 1.8  # inches of an entry of the legend


@dataclass(frozen=True)
class Block:
    """A part of the picture: its size in inches, and what draws it."""

    width: float
    height: float
    draw: Callable[[FigureBase], object]


def draw_fit(fit: Fitted, sure: Sure | None = None) -> Figure:
    """The data of a fit with what was fitted to them; see ``Fit.plot``.

    Args:
        fit: The fit.
        sure: How sure its estimates are, for confidence bands.

    Raises:
        ValueError: If no site can be drawn.
    """
    if has_item_curves(fit):
        figure = Picture(figsize=(7.0, 5.2), layout="constrained")
        draw_item_curves(figure, fit, sure)
        return figure
    if has_positions(fit):
        figure = Picture(figsize=(5.6, 5.2), layout="constrained")
        draw_positions(figure, fit)
        return figure
    sums = not fit.plan.on_nodes and not fit.plan.units
    emissions = read_emissions(fit.plan, fit.params, fit.columns) if sums else []
    panels = gaussian_panels(fit) + unit_panels(fit)
    if not emissions and not panels:
        names = ", ".join(f"'{name}'" for name in fit.plan.structure.observed)
        raise ValueError(
            f"there is nothing to draw: site {names} depends on several latent sites at once, or "
            "its distribution has no mean; fit.summary() holds the estimates."
        )
    blocks, entries = _blocks(fit, emissions, sure), _legend(emissions)
    blocks += [Block(*panel) for panel in panels]
    width = min(sum(block.width for block in blocks), WIDEST)
    height = min(max(block.height for block in blocks), TALLEST)
    across = max(int(width / ENTRY), 2)
    figure = Picture(
        figsize=(width, height + 0.25 * math.ceil(len(entries) / across)), layout="constrained"
    )
    parts = figure.subfigures(1, len(blocks), width_ratios=[b.width for b in blocks], squeeze=False)
    for part, block in zip(parts[0], blocks, strict=True):
        block.draw(part)
    if entries:
        figure.legend(
            handles=entries, loc="outside lower center", ncols=min(len(entries), across),
            frameon=False, handletextpad=0.4,
        )  # fmt: skip
    return figure


def _legend(emissions: Sequence[Emission]) -> list[Line2D]:
    """An entry for each state of each latent; tables name their states themselves."""
    drawn = [e for e in emissions if e.states > 1 and not _is_table(e)]
    states = {emission.latent: emission for emission in reversed(drawn)}
    entries = [h for emission in states.values() for h in state_handles(state_names(emission))]
    densities = (1, *range(3, PAIRS + 1))  # numbers of columns that are drawn with histograms
    if any(e.is_alike and not e.is_chain and len(e.columns) in densities for e in drawn):
        entries.append(mixture_handle())
    return entries


def _is_table(emission: Emission) -> bool:
    """Whether a site is drawn as a table of numbers by state."""
    if emission.is_chain or not emission.is_alike:
        return False
    many = len(emission.columns) > PAIRS
    plane = emission.kind == "real" and _has_plane(emission)
    return emission.kind in ("levels", "parts") or (many and not plane)


def _blocks(fit: Fitted, emissions: list[Emission], sure: Sure | None) -> list[Block]:
    alike = [e for e in emissions if e.is_alike and not e.is_chain]
    single = [e for e in alike if e.kind in ("real", "counts") and len(e.columns) == 1]
    blocks = [_densities(single)] if single else []
    for emission in emissions:
        if emission.is_chain:
            blocks.append(_chain(fit, emission))
        elif not emission.is_alike:
            blocks.append(_regression(fit, emission, sure))
        elif emission.kind in ("real", "counts") and len(emission.columns) > 1:
            blocks.append(_columns(fit, emission))
    tables = [e for e in emissions if e.kind in ("levels", "parts")]
    for latent in dict.fromkeys(e.latent for e in tables):
        blocks.append(_table([e for e in tables if e.latent == latent]))
    return blocks


def _densities(emissions: list[Emission]) -> Block:
    columns = min(len(emissions), 3)
    rows = math.ceil(len(emissions) / columns)

    def draw(figure: FigureBase) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for axes, emission in zip(panels, emissions, strict=False):
            draw_density(axes, emission, 0)
        for axes in panels[len(emissions) :]:
            axes.set_axis_off()

    alone = len(emissions) == 1
    return Block(6.0 if alone else 3.6 * columns, 4.0 if alone else 3.0 * rows, draw)


def _columns(fit: Fitted, emission: Emission) -> Block:
    """Two columns, a few, or many."""
    count = len(emission.columns)
    if count == 2:
        return Block(6.0, 4.8, lambda figure: draw_points(figure.subplots(), emission, (0, 1)))
    if count <= PAIRS:
        return Block(1.9 * count, 1.8 * count, lambda figure: draw_pairs(figure, emission))
    if not _is_table(emission):
        rows = _complete(fit, emission)
        return Block(6.5, 5.2, lambda figure: draw_plane(figure.subplots(), emission, rows))
    names = state_names(emission)
    height = min(max(1.0 + 0.3 * count, 4.5), 9.0)
    width = 2.9 + 0.9 * emission.states
    return Block(width, height, lambda figure: draw_means(figure.subplots(), emission, names))


def _has_plane(emission: Emission) -> bool:
    assert emission.covariances is not None
    within = torch.einsum("k,kij->ij", emission.shares, emission.covariances)
    return int(torch.linalg.cholesky_ex(within)[1]) == 0


def _complete(fit: Fitted, emission: Emission) -> Tensor:
    """The rows with what is missing filled in by its conditional mean."""
    if not bool(emission.rows.isnan().any()):
        return emission.rows
    imputed = imputation.impute(fit.plan, fit.params, None)
    filled = imputed[emission.site] if isinstance(imputed, dict) else imputed
    return filled.reshape(emission.rows.shape).to(torch.float64)


def _table(emissions: list[Emission]) -> Block:
    """The probabilities of all levels of all items below one latent."""
    names, rows = [], []
    for emission in emissions:
        items, probs = probability_rows(emission)
        names += items
        rows.append(probs)
    states = state_names(emissions[0])
    if emissions[0].states == 1:
        states = ["all"]
    height = min(1.2 + 0.3 * len(names), 9.0)
    width = 2.4 + 0.9 * len(states) + 0.07 * max(map(len, names))
    return Block(
        width, height,
        lambda figure: draw_probabilities(figure.subplots(), names, torch.cat(rows), states),
    )  # fmt: skip


def _chain(fit: Fitted, emission: Emission) -> Block:
    path, places = emission.posterior.argmax(-1), emission.values.shape[:-1]
    if emission.latent is not None:
        predicted = prediction.predict(fit.plan, fit.params)
        states = predicted[emission.latent] if isinstance(predicted, dict) else predicted
        if states.shape == places[len(places) - states.dim() :]:  # time is the last of both
            path = states.expand(places)
    sequences = min(emission.values[..., 0].numel() // emission.values.shape[-2], SEQUENCES)
    height = 1.6 + max(1.7 * panel_count(emission), 2.6)
    return Block(
        9.0 if sequences == 1 else 4.6 * sequences, height,
        lambda figure: draw_chain(figure, emission, path),
    )  # fmt: skip


def _regression(fit: Fitted, emission: Emission, sure: Sure | None) -> Block:
    covariates = covariates_of(fit, emission, sure) if len(emission.columns) == 1 else []
    if not covariates:
        return Block(6.0, 4.4, lambda figure: draw_expected(figure.subplots(), emission))
    columns = across(len(covariates))
    rows = math.ceil(len(covariates) / columns)
    size = (6.0, 4.4) if len(covariates) == 1 else (3.8 * columns, 3.4 * rows)
    return Block(*size, lambda figure: draw_lines(figure, emission, covariates))
