r"""Choosing a model: a sweep over its options, with criteria that charge for parameters.

With ``L`` the log likelihood at the estimates, ``d`` free parameters and ``n`` rows,

.. math::

    \mathrm{AIC} = -2 L + 2 d, \qquad \mathrm{BIC} = -2 L + d \log n, \qquad
    \mathrm{ICL} = \mathrm{BIC} - 2 \sum_{n,k} t_{nk} \log t_{nk},

the last one charging for rows whose latent state is uncertain. Smaller is better.

Reference: Fraley & Raftery (2007), Journal of Classification 24, 155-181 (BIC at the MAP
estimate); Biernacki, Celeux & Govaert (2000), IEEE PAMI 22, 719-725 (ICL).
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import biject_to

from ember.inference.arguments import prepare, sheltered
from ember.inference.em import EM
from ember.inference.expectation.enumeration import align
from ember.inference.fit import Fit
from ember.inference.options import check_choice, progress_bar
from ember.inference.pictures import Picture
from ember.inference.plan import Plan

__all__ = ["Selection", "criteria", "free_parameters", "select"]

COLUMNS = (
    "parameters",
    "log_likelihood",
    "aic",
    "bic",
    "icl",
    "held_out",
    "converged",
    "error",
)
CRITERIA = ("bic", "icl", "aic", "held_out")


@dataclass
class Selection:
    """The outcome of a sweep.

    Attributes:
        table: One row for each combination of options, in the order tried: the options, free
            parameters, log likelihood, AIC, BIC, ICL, held-out log likelihood per row (NaN
            without ``folds``), whether the fit converged, and the error of those that failed.
        fits: Fits by row number; failed combinations are missing.
        best: The fit that the criterion prefers.
        options: The options of ``best``.
        criterion: The criterion that chose it.
    """

    table: pd.DataFrame
    fits: dict[int, Fit]
    best: Fit
    options: dict[str, Any]
    criterion: str

    def __str__(self) -> str:
        chosen = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.table.to_string(index=False)}\n\nbest by {self.criterion}: {chosen}"

    __repr__ = __str__

    def plot(self) -> Figure:
        """The criteria against the first option, a line for each combination of the others."""
        first, *others = self.options
        shown = [c for c in ("bic", "icl", "held_out") if self.table[c].notna().any()]
        figure = Picture(figsize=(4.5 * len(shown), 3.8), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(shown)))
        for axes, criterion in zip(panels, shown, strict=True):
            groups: Any = self.table.groupby(others, sort=False) if others else [("", self.table)]
            for label, group in groups:
                text = ", ".join(map(str, label)) if isinstance(label, tuple) else str(label)
                axes.plot(group[first].map(str), group[criterion], marker="o", label=text or None)
            better = "larger is better" if criterion == "held_out" else "smaller is better"
            axes.set(xlabel=first, title=f"{criterion.replace('_', '-')} ({better})")
            if others:
                axes.legend(title=", ".join(others), frameon=False)
        return figure


def select(
    model: Callable[..., Any],
    *args: Any,
    criterion: str = "bic",
    folds: int = 0,
    progress: bool = False,
    em: Mapping[str, Any] | None = None,
    **options: Any,
) -> Selection:
    """Fits a model with every combination of some options and keeps the best.

    Args:
        model: A Pyro function.
        *args: The model's data.
        criterion: "bic", "icl", "aic" (smaller is better) or "held_out" (larger is better).
        folds: Number of folds for the held-out log likelihood of a row; 0 leaves it out. Rows
            are those of the first dim of the positional arguments, and of tensors of that size
            among the options; of hidden Markov models they are whole sequences, not steps.
        progress: Whether to show one bar for the sweep.
        em: Options of ``EM`` (``objective``, ``restarts``, ``seed``, ...), by name.
        **options: The model's keyword options; a range or list is tried value by value.

    Returns:
        A ``Selection``: table, picture, fits and the best fit. A combination that fails is
        reported in the table and does not end the sweep.

    Raises:
        ValueError: If an option of the sweep is unknown, nothing is to be chosen, or every
            combination fails.

    Example:
        >>> import torch
        >>> from ember.models import poisson_mixture
        >>> counts = torch.tensor([0.0, 1, 0, 2, 1, 9, 11, 8, 10, 12])
        >>> chosen = select(poisson_mixture, counts, components=[1, 2], em={"seed": 0})
        >>> chosen.options
        {'components': 2}
    """
    check_choice("criterion", criterion, CRITERIA)
    if criterion == "held_out" and folds < 2:
        raise ValueError("criterion='held_out' needs folds of at least 2, for example folds=5.")
    swept = {name: list(value) for name, value in options.items() if _is_sweep(value)}
    fixed = {name: value for name, value in options.items() if name not in swept}
    if not swept or not all(swept.values()):
        raise ValueError(
            "there is nothing to choose from; give at least one option several values, for example "
            "components=range(1, 6)."
        )
    cells = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
    method = EM(model, **{**(em or {}), "progress": False})
    rows: list[dict[str, Any]] = []
    fits: dict[int, Fit] = {}
    with progress_bar(progress, len(cells), "select") as tick:
        for i, cell in enumerate(cells):
            row: dict[str, Any] = dict(cell)
            try:
                fits[i], measures = _fit_cell(method, args, {**fixed, **cell}, folds)
                row.update(measures, converged=fits[i].converged, error="")
            except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
                row.update(converged=False, error=str(error))
            rows.append(row)
            tick(row.get("log_likelihood", math.nan))
    if not fits:
        raise ValueError(f"every combination failed; the first said: {rows[0]['error']}")
    table = pd.DataFrame(rows).reindex(columns=[*swept, *COLUMNS])
    scores = table[criterion] if criterion == "held_out" else -table[criterion]
    best = int(scores.to_numpy(dtype=float, na_value=-math.inf).argmax())
    return Selection(table, fits, fits[best], cells[best], criterion)


def _is_sweep(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, Tensor, np.ndarray, Mapping))


def _fit_cell(
    method: EM, args: tuple[Any, ...], options: Mapping[str, Any], folds: int
) -> tuple[Fit, dict[str, float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the table says what they say
        fit = method.fit(*args, **options)
        if fit.is_degenerate:
            raise ArithmeticError(fit.warning)
        measures = criteria(fit)
        if folds:
            _check_rows(fit.plan, folds)
        measures["held_out"] = _held_out(method, args, options, folds) if folds else math.nan
    return fit, measures


def criteria(fit: Fit) -> dict[str, float]:
    """Free parameters, log likelihood, AIC, BIC and ICL of a fit; see the module's formulas."""
    count, rows = free_parameters(fit.plan), _rows(fit.plan)
    bic = -2.0 * fit.log_likelihood + count * math.log(rows)
    return {
        "parameters": count,
        "log_likelihood": fit.log_likelihood,
        "aic": -2.0 * fit.log_likelihood + 2.0 * count,
        "bic": bic,
        "icl": bic + 2.0 * _entropy(fit),
    }


def free_parameters(plan: Plan) -> int:
    """Dimension of the parameter space: a simplex of ``K`` counts ``K - 1``, and so on."""
    return sum(
        int(biject_to(p.support).inverse_shape(p.shape).numel())
        for p in plan.structure.parameters.values()
    )


def _rows(plan: Plan) -> float:
    """The number of observations: rows with their weights, or steps of a chain."""
    total = 0.0
    name = plan.structure.observed[0]
    chain = [n for n in plan.structure.observed if n in plan.structure.steps]
    for site in chain or [name]:
        mask = plan.sites[site].mask
        if (
            (plan.structure.composites or plan.structure.loops)
            and mask is not None
            and plan.scales[site] is None
        ):
            total += float(_seen(plan, site, mask))
            continue
        places = float(math.prod(plan.sizes[s] for s in plan.sites[site].plates))
        scale = plan.scales[site]
        if scale is not None:
            missing = math.prod(plan.sizes[s] for s in plan.sites[site].plates - set(scale.dims))
            places = float(scale.tensor.sum()) * missing
        total += places
    return total


def _seen(plan: Plan, name: str, mask: Tensor) -> Tensor:
    """How many places of a composite site's plates hold data."""
    site = plan.sites[name]
    outer = [plan.sizes[s] if s in site.plates else 1 for s in site.layout.outer]
    shown = mask.expand(*outer, *site.inner_shape) if mask.dim() else mask.expand(outer)
    return shown.reshape(*outer, -1).any(-1).sum()


def _entropy(fit: Fit) -> float:
    """Entropy of the latents' posterior marginals, rows by their weights."""
    total, latents = 0.0, list(fit.plan.structure.latent)
    if not latents:
        return total
    with sheltered(data=fit.plan.structure.arguments):
        for name, t in fit.plan.posterior(fit.params, latents).items():
            entropy = -torch.special.xlogy(t, t).sum(-1)
            if name in fit.plan.chains:
                entropy = entropy * _inside(fit.plan, name)
            scale = fit.plan.scales[name]
            if scale is not None and entropy.dim() == scale.tensor.dim():
                entropy = entropy * scale.tensor
            total += float(entropy.sum())
    return total


def _inside(plan: Plan, name: str) -> Tensor:
    """Which steps a chain has: past its end there is no state, and no doubt about one."""
    chain, places = plan.chains[name], plan.places(name)
    if chain.lengths is None:
        return torch.ones(())
    dims, lengths = chain.lengths
    plates = tuple(place for place in places if place != chain.time)
    order = torch.arange(chain.steps)
    inside = order < align(lengths, dims, plates).unsqueeze(-1)
    return inside.movedim(-1, places.index(chain.time)).to(torch.float64)


def _held_out(method: EM, args: tuple[Any, ...], options: Mapping[str, Any], folds: int) -> float:
    """Mean log likelihood of a row under the model fitted without its fold."""
    given = prepare(args, options)
    data: Sequence[Any] = given.args
    rows = len(data[0])
    fold = torch.arange(rows) % folds
    fold = fold[torch.randperm(rows, generator=torch.Generator().manual_seed(method.seed or 0))]
    total = 0.0
    for i in range(folds):
        inside, outside = (
            (
                [_some(v, mask) for v in data],
                {name: _some(v, mask) for name, v in given.kwargs.items()},
            )
            for mask in (fold != i, fold == i)
        )
        total += float(
            method.fit(*inside[0], **inside[1]).log_prob(*outside[0], **outside[1]).sum()
        )
    return total / rows


def _some(value: Any, mask: Tensor) -> Any:
    """Those of an argument's rows that a mask keeps; what has no such rows as it is."""
    rowwise = isinstance(value, Tensor) and value.dim() and len(value) == len(mask)
    return value[mask] if rowwise else value


def _check_rows(plan: Plan, folds: int) -> None:
    """Refuse to leave out single steps of a chain: those that are left would not be neighbours."""
    if not (plan.chains or plan.structure.steps):
        return
    row = plan.structure_row()
    data = plan.structure.arguments.args[0]
    if row is None or row[1] != len(data):
        raise ValueError(
            "a held-out score leaves whole sequences out, but there is a single one: leave folds "
            "out and choose by criterion='bic', or pass several sequences, x of shape (S, T)."
        )
    if row[1] < folds:
        raise ValueError(
            f"folds={folds} is more than the {row[1]} sequences; pass folds={row[1]} at most."
        )
