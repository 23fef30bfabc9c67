"""The marginal posteriors of several methods, side by side: one table, one picture."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ember.inference.fit import Fit
from ember.inference.inputs.shelter import sheltered
from ember.inference.parameters.parameter import entry_label
from ember.inference.queries.uncertainty.drawn import deviation
from ember.inference.reports.summary import entry_values, named_labels
from ember.inference.sampled_fit import SampledFit
from ember.inference.sampling.diagnostics import effective_size, r_hat
from ember.inference.sampling.labels import relabelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Marginals", "marginals_of"]


DRAWS = 2000
SHOWN = 12  # panels of a picture
Params = Mapping[str, Tensor]


@dataclass
class Marginals:
    """What each method says of every parameter entry.

    Attributes:
        table: A row for each entry, below those for the log posterior and the seconds; for each
            method the columns ``estimate``, ``sd``, and of chains ``r_hat`` and ``ess``.
        draws: Method to site to ``(n, *shape)``, states numbered as in the first fit. Those of a
            point are of its normal approximation.
    """

    table: pd.DataFrame
    draws: dict[str, dict[str, Tensor]]
    estimates: dict[str, Params]
    labels: dict[str, str]

    def plot(self, sites: Sequence[str] | None = None) -> Figure:
        """The marginal densities, a panel for each entry and a line for each method.

        Args:
            sites: Whose entries to draw; all unless given. The first twelve are shown.

        Raises:
            ValueError: If a site is unknown.
        """
        from ember.inference.reports.drawing.marginals import draw_marginals

        known = list(next(iter(self.estimates.values())))
        for site in sites or ():
            if site not in known:
                raise ValueError(f"'{site}' is no parameter; the model has {known}.")
        first = next(iter(self.estimates.values()))
        entries = [
            (name, index)
            for name in (sites or known)
            for index in np.ndindex(*first[name].shape)
            if not _is_mirrored(first[name], index)
        ]
        densities: dict[str, list[Tensor | None]] = {}
        points: dict[str, list[float]] = {}
        for method, params in self.estimates.items():
            drawn = self.draws.get(method)
            densities[method] = [
                None if drawn is None else drawn[name][(slice(None), *index)]
                for name, index in entries[:SHOWN]
            ]
            points[method] = [float(params[name][index]) for name, index in entries[:SHOWN]]
        titles = [self.labels[entry_label(name, index)] for name, index in entries[:SHOWN]]
        return draw_marginals(titles, densities, points)

    def __str__(self) -> str:
        return self.table.to_string(float_format="{:.5g}".format, na_rep="-")

    __repr__ = __str__


def marginals_of(
    fits: Mapping[str, Fit], params: Mapping[str, Params], log_posteriors: Mapping[str, float]
) -> Marginals:
    """The marginals of fits whose estimates have been numbered alike.

    Args:
        fits: Name of the method to its fit.
        params: Name of the method to its estimates.
        log_posteriors: Name of the method to what tables say of it.
    """
    fits = {
        name: fit if fit.has_posterior else dataclasses.replace(fit, params=dict(params[name]))
        for name, fit in fits.items()
    }
    drawn = {name: _draws(fit, params[name]) for name, fit in fits.items()}
    columns: dict[tuple[str, str], dict[str, float]] = {}
    first = next(iter(fits.values()))
    for name, fit in fits.items():
        measures = {"log posterior": log_posteriors[name], "seconds": fit.seconds}
        columns[name, "estimate"] = {**measures, **entry_values(params[name])}
        columns[name, "sd"] = entry_values(_deviations(fit, params[name], drawn[name]))
        chains = _chains(fit, drawn[name])
        if chains is not None:
            columns[name, "r_hat"] = entry_values({n: r_hat(v) for n, v in chains.items()})
            columns[name, "ess"] = entry_values({n: effective_size(v) for n, v in chains.items()})
    table = pd.DataFrame(columns)
    labels = named_labels(first.params, first.axes)
    table = table.rename(index=labels)
    found = {name: draws for name, draws in drawn.items() if draws is not None}
    return Marginals(table, found, dict(params), labels)


def _is_mirrored(value: Tensor, index: tuple[int, ...]) -> bool:
    """Whether an entry of a symmetric matrix has been shown on the other side of the diagonal."""
    if len(index) < 2 or index[-2] <= index[-1] or value.shape[-1] != value.shape[-2]:
        return False
    return bool(torch.equal(value, value.mT))


def _draws(fit: Fit, params: Params) -> dict[str, Tensor] | None:
    """Draws of the parameters numbered as ``params``; None where there is none to be had."""
    if fit.has_posterior:
        every = fit.posterior_draws()
        with sheltered(data=fit._data):
            return relabelled(fit.plan, {name: every[name] for name in params}, params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            return fit.laplace_samples(DRAWS, seed=0)
        except ValueError:  # the objective has no maximum there
            return None


def _deviations(fit: Fit, params: Params, draws: Params | None) -> dict[str, Tensor]:
    """The standard deviation of every entry; that of a point by its observed information."""
    if fit.has_posterior and draws is not None:
        return {name: deviation(value) for name, value in draws.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            found = fit.standard_errors()
        except ValueError:
            return {name: torch.full_like(value, torch.nan) for name, value in params.items()}
    return {name: found[name] for name in params}


def _chains(fit: Fit, draws: Params | None) -> dict[str, Tensor] | None:
    """Draws chain by chain, ``(chains, n, *shape)``, if there are several."""
    if not isinstance(fit, SampledFit) or draws is None or len(fit.heights) < 2:
        return None
    return {name: value.unflatten(0, fit.heights.shape) for name, value in draws.items()}
