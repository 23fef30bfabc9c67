"""Which panels suit the Gaussian latents of a fit: effects of groups, hidden factors, or paths."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ember.inference.plan.plan import Plan
from ember.inference.queries.gaussian.locations import Locations
from ember.inference.queries.gaussian.moments import component_of
from ember.inference.queries.gaussian.posterior import GaussianPosterior, gaussian_posterior
from ember.inference.queries.gaussian.predictive import site_predictive
from ember.inference.queries.prediction import posterior
from ember.inference.reading.sequences import base_name, members
from ember.inference.reports.drawing.effects import Panel, draw_effects, effect_height, fitted_panel
from ember.inference.reports.drawing.factors import draw_loadings, draw_scores
from ember.inference.reports.drawing.paths import draw_paths
from ember.inference.reports.fitted import Fitted

__all__ = ["gaussian_panels"]


MOST = 6  # effects of a level, factors and paths that are drawn


def gaussian_panels(fit: Fitted) -> list[Panel]:
    """The width, the height and the drawing of each part of the picture."""
    plan, panels = fit.plan, list[Panel]()
    names = dict.fromkeys(_shared_name(plan, name) for name in plan.structure.gaussian)
    paths = [name for name in names if name not in plan.structure.gaussian]
    if paths:
        panels.append(_paths(fit, paths))
    grouped = False
    for name in names:
        if name in paths:
            continue
        loadings = _loadings(fit, name)
        if loadings is not None:
            panels += _factors(fit, name, *loadings)
        else:
            panels.append(_effects(fit, name))
            grouped = True
    if grouped:
        panels += _fitted(fit)
    return panels


def _shared_name(plan: Plan, name: str) -> str:
    """A latent's name, or that which the steps of a chain share."""
    base = base_name(name) if name in plan.structure.steps else None
    steps = members(base, plan.structure.gaussian) if base else []
    alike = {plan.structure.gaussian[step] for step in steps}
    together = {component_of(plan, step) for step in steps}
    return base if base and len(steps) > 1 and len(alike) == 1 == len(together) else name


def _of(fit: Fitted, name: str) -> GaussianPosterior:
    found = gaussian_posterior(fit.plan, fit.params, name)
    assert found is not None
    return found


# -- effects of groups --------------------------------------------------------------------------


def _effects(fit: Fitted, name: str) -> Panel:
    found = _of(fit, name)
    batch = found.covariance.shape[:-2].numel()
    # A single vector, such as the breeding values of all animals, has its entries as levels.
    shape = (batch, -1) if batch > 1 else (-1, 1)
    mean, deviation = (t.reshape(shape)[:, :MOST] for t in (found.mean, found.stddev))
    width = 4.6 if mean.shape[1] == 1 else 3.2 * mean.shape[1]
    return (
        width,
        effect_height(len(mean)),
        lambda figure: draw_effects(figure, name, mean, deviation, fit.axes.get(name, {})),
    )


def _fitted(fit: Fitted) -> Iterator[Panel]:
    """Of numbers that read latents: the data against their expectation."""
    for name in fit.plan.structure.observed:
        site = fit.plan.sites[name]
        if not site.slots or site.event_dim:
            continue
        data = _shown(fit.plan, name).reshape(-1)
        expected = site_predictive(fit.plan, fit.params, name).average.reshape(-1)
        if data.numel() != expected.numel() or data.numel() < 2:
            continue
        yield fitted_panel(fit.columns.get(name, (name,)), data, expected)


def _shown(plan: Plan, name: str) -> Tensor:
    """The data of a site, NaN where missing."""
    site = plan.sites[name]
    gaps = torch.zeros((), dtype=torch.bool) if site.missing is None else site.missing
    return torch.where(gaps, torch.nan, site.value.to(torch.float64))


# -- hidden factors -----------------------------------------------------------------------------


def _loadings(fit: Fitted, name: str) -> tuple[Tensor, list[str]] | None:
    """Of a latent of rows: loadings ``(S, D, q)`` and the names of the columns that follow it."""
    plan = fit.plan
    component = component_of(plan, name)
    assert component is not None
    rows = {symbol for symbol, _ in component.rows}
    size = plan.sites[name].value.numel() // max(_batch(plan, name), 1)
    parts, columns = [], []
    for site_name in plan.structure.observed:
        site = plan.sites[site_name]
        slots = [i for i, slot in enumerate(site.slots) if slot.latent == name]
        if not slots or plan.row not in rows:
            continue
        found = Locations.of(plan, fit.params, component, site_name)
        states = {symbol for symbol, _ in component.states}
        outer = [symbol for symbol in site.layout.outer if symbol not in states]
        full = (*found.batch, *found.fn.event_shape)
        lead = [0 if i < len(outer) and outer[i] in rows else slice(None) for i in range(len(full))]
        count = max(len(c) for c in found.coefficients)
        table: Tensor | None = None
        for i in slots:
            whole = found.coefficients[i].expand(-1, *full)
            column = whole[(slice(None), *lead)].reshape(len(whole), -1).expand(count, -1)
            if table is None:
                table = column.new_zeros(count, column.shape[1], size)
            entry = int(found.entries[i].reshape(-1)[0] - component.first(name)) % size
            table[..., entry] += column
        assert table is not None
        parts.append(table)
        given = list(fit.columns.get(site_name, ()))
        width = table.shape[1]
        alone = [site_name] if width == 1 else [f"{site_name}[{d}]" for d in range(width)]
        columns += given if len(given) == width else alone
    if not parts or len(columns) < 2:
        return None
    states_of = max(len(part) for part in parts)
    return torch.cat([part.expand(states_of, -1, -1) for part in parts], 1), columns


def _batch(plan: Plan, name: str) -> int:
    site = plan.sites[name]
    return site.value.shape[: site.value.dim() - site.event_dim].numel()


def _factors(fit: Fitted, name: str, loadings: Tensor, columns: list[str]) -> Iterator[Panel]:
    plan = fit.plan
    mean = _of(fit, name).mean.reshape(_batch(plan, name), -1)
    owner, state = _states(fit, name)
    heads = [f"{owner} {s}" for s in range(len(loadings))]
    loadings = loadings[..., :MOST]
    width = 1.8 + len(loadings) * max(0.9 * loadings.shape[-1], 1.4)
    height = min(max(1.4 + 0.3 * len(columns), 3.6), 9.0)
    yield (
        width,
        height,
        lambda figure: draw_loadings(figure, columns, loadings, name, heads),
    )
    yield (
        4.8,
        4.4,
        lambda figure: draw_scores(figure.subplots(), name, mean, state, heads),
    )


def _states(fit: Fitted, name: str) -> tuple[str, Tensor | None]:
    """The one discrete latent beside a Gaussian one, and its most probable value in each row."""
    component = component_of(fit.plan, name)
    assert component is not None
    if len(component.states) != 1:
        return "", None
    owner = next(n for n, s in fit.plan.latent_symbols.items() if s == component.states[0][0])
    best = posterior(fit.plan, fit.params, owner).argmax(-1).reshape(-1)
    return owner, best if len(best) == _batch(fit.plan, name) else None


# -- paths --------------------------------------------------------------------------------------


def _paths(fit: Fitted, bases: list[str]) -> Panel:
    """All chains of steps, each entry of their events a path."""
    plan = fit.plan
    names, means, deviations = list[str](), list[Tensor](), list[Tensor]()
    data: dict[int, tuple[str, Tensor]] = {}
    for base in bases:
        found = _of(fit, base)
        events = found.covariance.shape[-1]
        steps = found.covariance.shape[-3]
        mean, deviation = (
            t.reshape(-1, steps, events)[0].T for t in (found.mean, found.stddev)
        )  # the first of several sequences
        for k in range(events):
            if events == 1:
                series = _followed(plan, fit, mean[0])
                if series is not None:
                    data[len(names)] = series
            names.append(base if events == 1 else f"{base}[{k}]")
        means.append(mean)
        deviations.append(deviation)
    mean, deviation = torch.cat(means)[:MOST], torch.cat(deviations)[:MOST]
    height = 1.4 + 2.1 * len(mean)
    return 8.5, height, lambda figure: draw_paths(figure, names[: len(mean)], mean, deviation, data)


def _followed(plan: Plan, fit: Fitted, path: Tensor) -> tuple[str, Tensor] | None:
    """The data of steps that have a path as their mean: its name and the series."""
    bases = {base_name(n) or n for n in plan.structure.observed if n in plan.structure.steps}
    for base in sorted(bases):
        steps = members(base, plan.structure.observed)
        if len(steps) != len(path) or any(plan.sites[step].value.numel() != 1 for step in steps):
            continue
        if not all(plan.sites[step].slots for step in steps):
            continue
        expected = torch.stack(
            [site_predictive(plan, fit.params, step).average.reshape(()) for step in steps]
        )
        if torch.allclose(expected, path, rtol=1e-9, atol=1e-12):
            values = torch.stack([_shown(plan, step).reshape(()) for step in steps])
            return base, values
    return None
