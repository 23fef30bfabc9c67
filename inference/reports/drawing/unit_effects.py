"""Panels for latents that are integrated unit by unit: their effects, and the data beside them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ember.inference.numerics.shapes import prepend_dims
from ember.inference.queries.units import unit_posterior
from ember.inference.reports.drawing.effects import Panel, draw_effects, effect_height, fitted_panel
from ember.inference.reports.fitted import Fitted

__all__ = ["unit_panels"]


MOST = 6  # effects of a unit that are drawn


def unit_panels(fit: Fitted) -> list[Panel]:
    """The width, the height and the drawing of each part of the picture."""
    panels = [_effects(fit, name) for name in fit.plan.structure.units]
    return panels + list(_fitted(fit)) if panels else []


def _effects(fit: Fitted, name: str) -> Panel:
    found = unit_posterior(fit.plan, fit.params, name)
    assert found is not None
    units = max(found.batch_shape.numel(), 1)
    mean, deviation = (t.reshape(units, -1)[:, :MOST] for t in (found.mean, found.stddev))
    return (
        4.6 if mean.shape[1] == 1 else 3.2 * mean.shape[1],
        effect_height(units),
        lambda figure: draw_effects(figure, name, mean, deviation, fit.axes.get(name, {})),
    )


def _fitted(fit: Fitted) -> Iterator[Panel]:
    """The data against what is expected of them where latents are at their posterior means.

    Of answers yes or no a cloud at two heights would show nothing.
    """
    plan = fit.plan
    values: dict[str, Tensor] = {}
    for name in plan.structure.units:
        found = unit_posterior(plan, fit.params, name)
        assert found is not None
        values[name] = found.mean
    trace = plan.structure.trace({**fit.params, **values})
    for name in plan.structure.observed:
        site = plan.sites[name]
        if site.unit is None or site.event_dim or len(site.value.unique()) <= 2:
            continue
        try:
            expected = trace.nodes[name]["fn"].mean
        except (NotImplementedError, AttributeError):
            continue  # a distribution without a mean
        data = site.value.to(torch.float64)
        if site.mask is not None:
            data = torch.where(prepend_dims(site.mask, data.dim()), data, torch.nan)
        if expected.shape != data.shape or data.numel() < 2:
            continue
        names = fit.columns.get(name, (name,))
        yield fitted_panel(names, data.reshape(-1), expected.reshape(-1))
