"""What ``print(fit)`` shows and ``fit.summary()`` holds: estimates with the names of columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ember.inference.optimality.certificate import Certificate
from ember.inference.parameters.parameter import entry_label
from ember.inference.plan.plan import Plan
from ember.inference.plan.without_data import PlanWithoutData
from ember.inference.reports.fitted import Fitted
from ember.inference.reports.naming import WHOLE

__all__ = ["entry_rows", "entry_values", "estimates", "named_labels", "summary", "text"]


LARGEST = 64  # entries that are shown in full
Axes = Mapping[int, Sequence[str]]


def text(fit: Fitted) -> str:
    """What ``print(fit)`` shows."""
    posterior = f"\n  log posterior   {fit.log_posterior:.6f}" if fit.objective == "map" else ""
    starts = f"\n  starts          {fit.starts}" if len(fit.starts) > 1 else ""
    nodes = "".join(_nodes(fit.plan, name, gap) for name, gap in fit.node_gaps.items())
    if fit.monte_carlo is not None:
        errors = fit.monte_carlo
        nodes += (
            f"\n  Monte Carlo     errors are at most {errors.share:.2g} standard errors "
            f"({errors.draws} draws of each unit)"
        )
    maximum = "" if fit.certificate is None else f"\n  maximum         {shown(fit.certificate)}"
    computed = fit.deterministic
    block = f"\nComputed\n{estimates(computed, {})}" if computed else ""
    return (
        f"{fit.method}: {fit.stop_reason}\n"
        f"  log likelihood  {fit.log_likelihood:.6f}{posterior}\n"
        f"  BIC, AIC        {fit.bic:.6f}, {fit.aic:.6f} "
        f"({fit.n_parameters} free parameters, {fit.n_observations:g} observations)\n"
        f"  iterations      {fit.iterations} ({fit.evaluations} passes over the data, "
        f"{fit.seconds:.2f} s){starts}{nodes}{maximum}\n"
        f"Estimates\n{estimates(fit.params, fit.axes)}{block}"
    )


def _nodes(plan: Plan, name: str, gap: float) -> str:
    """How a continuous latent was integrated, and how far to trust that."""
    if name in plan.structure.nodes:
        shown = plan.structure.nodes[name].shown
        trust = f"even and odd ones differ by {gap:.0e} at most"
    else:
        if isinstance(plan, PlanWithoutData):
            shown = plan.record.units.get(name, "some")
        else:
            component = next(c for c in plan.units if name in c.latents)
            shown = component.rule.shown(component.dims)
        trust = f"more change a unit's log evidence by {gap:.0e} at most"
    return f"\n  nodes           {shown} for '{name}' ({trust})"


def shown(certificate: Certificate) -> str:
    """Slope and curvature of a maximum in words."""
    curvature = certificate.curvature
    least = "" if curvature is None else f", least curvature {curvature:.2g}"
    return f"gradient {certificate.gradient:.0e}{least} (complete data: 1)"


def summary(
    params: Mapping[str, Tensor], computed: Mapping[str, Tensor], labels: Mapping[str, Axes]
) -> pd.DataFrame:
    """One row for every entry; a column of the names of columns where there are any."""
    rows = [*entry_rows(params, labels), *entry_rows(computed, {})]
    frame = pd.DataFrame(rows, columns=["parameter", "column", "estimate"])
    frame = frame.set_index("parameter")
    return frame if labels else frame[["estimate"]]


def estimates(params: Mapping[str, Tensor], labels: Mapping[str, Axes]) -> str:
    """A block for every parameter: small ones in full, with the columns' names where known."""
    return "\n".join(_block(name, value, labels.get(name, {})) for name, value in params.items())


def named_labels(params: Mapping[str, Tensor], labels: Mapping[str, Axes]) -> dict[str, str]:
    """The label of every entry, with names of columns in the place of their numbers."""
    named = {}
    for name, value in params.items():
        axes = labels.get(name, {})
        for index in np.ndindex(*value.shape):
            entry = [str(axes[a][i]) if a in axes else str(i) for a, i in enumerate(index)]
            text = f"{name}[{', '.join(entry)}]" if entry else name
            whole = f" ({axes[WHOLE][0]})" if WHOLE in axes else ""
            named[entry_label(name, index)] = text + whole
    return named


def _block(name: str, value: Tensor, axes: Axes) -> str:
    shown = _show(value, axes)
    if WHOLE not in axes:
        return f"  {name}:{shown}"
    first, *lines = shown.split("\n")  # the column that all of it belongs to
    return "\n".join([f"  {name}:{first} ({axes[WHOLE][0]})", *lines])


def entry_rows(
    params: Mapping[str, Tensor], labels: Mapping[str, Axes]
) -> Iterator[tuple[str, str, float]]:
    """Label, name of the column, and value of every entry of every parameter."""
    for name, value in params.items():
        axes = labels.get(name, {})
        for index in np.ndindex(*value.shape):
            columns = [
                names[0] if axis == WHOLE else names[index[axis]]
                for axis, names in sorted(axes.items())
            ]
            yield entry_label(name, index), ", ".join(columns), float(value[index])


def entry_values(params: Mapping[str, Tensor]) -> dict[str, float]:
    """The value of every entry of every parameter, by its label."""
    return {label: value for label, _, value in entry_rows(params, {})}


def _show(value: Tensor, axes: Axes) -> str:
    """A small tensor in full, a large one by its shape and range."""
    if value.numel() > LARGEST:
        if not value.isfinite().all():
            return f" shape {tuple(value.shape)}, not finite everywhere"
        low, high = float(value.min()), float(value.max())
        return f" shape {tuple(value.shape)}, from {low:.6g} to {high:.6g}"
    if not value.dim():
        return f" {float(value):.6g}"
    if value.numel() and any(axis != WHOLE for axis in axes):
        return _indented(_table(value, axes))
    numbers = value.detach().to(torch.float64) if value.is_floating_point() else value
    lines = np.array2string(numbers.cpu().numpy(), precision=6, suppress_small=True)
    return f" {lines}" if "\n" not in lines else _indented(lines)


def _table(value: Tensor, axes: Axes) -> str:
    """Entries below the names of their columns, and beside the numbers of their states."""
    *rows, last = (list(axes.get(axis, range(size))) for axis, size in enumerate(value.shape))
    index = pd.MultiIndex.from_product(rows) if rows else pd.Index([""])
    flat = value.detach().reshape(-1, value.shape[-1]).to(torch.float64).cpu().numpy()
    frame = pd.DataFrame(flat, index=index, columns=list(map(str, last)))
    return frame.to_string(float_format="{:.6g}".format, line_width=100)


def _indented(text: str) -> str:
    return "\n    " + "\n    ".join(text.split("\n"))
