"""Choosing a model: a sweep over its options, with the criteria of ``queries/criteria.py``."""

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ember.inference.em import EM
from ember.inference.fit import Fit
from ember.inference.inputs.arguments import Model, prepare
from ember.inference.inputs.devices import device_of
from ember.inference.inputs.frames import names_columns, take
from ember.inference.inputs.options import check_choice
from ember.inference.iteration.progress import progress_bar
from ember.inference.numerics.draws import Draws
from ember.inference.numerics.whole_numbers import is_whole
from ember.inference.plan.plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Selection", "criteria", "select"]


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
            without ``folds``), whether the fit converged, and the error of those that failed. The
            criterion that chooses is the last column, which print shows however narrow it is.
        fits: Fits by row number; failed combinations are missing.
        best: The fit that the criterion prefers.
        options: The options of ``best``.
        criterion: The criterion that chose it.
    """

    table: pd.DataFrame
    fits: dict[int, Fit]
    best: Fit
    options: dict[str, object]
    criterion: str

    def __str__(self) -> str:
        chosen = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.table.to_string(index=False)}\n\nbest by {self.criterion}: {chosen}"

    __repr__ = __str__

    def plot(self) -> "Figure":
        """The criteria against the first option, a line for each combination of the others."""
        from ember.inference.reports.drawing.picture import Picture

        first, *others = self.options
        shown = [c for c in ("bic", "icl", "held_out") if self.table[c].notna().any()]
        figure = Picture(figsize=(4.5 * len(shown), 3.8), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(shown)))
        for axes, criterion in zip(panels, shown, strict=True):
            for label, group in self._lines(others):
                text = ", ".join(map(str, label)) if isinstance(label, tuple) else str(label)
                axes.plot(group[first].map(str), group[criterion], marker="o", label=text or None)
            better = "larger is better" if criterion == "held_out" else "smaller is better"
            axes.set(xlabel=first, title=f"{criterion.replace('_', '-')} ({better})")
            if others:
                axes.legend(title=", ".join(others), frameon=False)
        return figure

    def _lines(self, options: list[str]) -> Iterable[tuple[object, pd.DataFrame]]:
        """The rows of the table for each combination of some options."""
        return self.table.groupby(options, sort=False) if options else [("", self.table)]


def select(
    model: Model,
    /,
    *args: object,
    criterion: str = "bic",
    folds: int = 0,
    progress: bool = False,
    em: Mapping[str, Any] | None = None,
    **options: object,
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
    _check_folds(folds, criterion)
    if em is not None and not isinstance(em, Mapping):
        raise TypeError(f"em={em!r} must be a dict of options of EM, for example em={{'seed': 0}}.")
    swept = {
        name: list(cast(Iterable[object], value))
        for name, value in options.items()
        if _is_sweep(value) and not ("data" in options and names_columns(model, name, value))
    }
    fixed = {name: value for name, value in options.items() if name not in swept}
    if not swept or not all(swept.values()):
        arrays = [name for name, value in options.items() if isinstance(value, np.ndarray)]
        note = f" ('{arrays[0]}' is an array, which counts as data: pass a list)" if arrays else ""
        raise ValueError(
            f"there is nothing to choose from{note}; give at least one option several values, for "
            "example components=range(1, 6)."
        )
    cells = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
    method = EM(model, **{**(em or {}), "progress": False})
    rows: list[dict[str, object]] = []
    fits: dict[int, Fit] = {}
    with progress_bar(progress, len(cells), "select") as tick:
        for i, cell in enumerate(cells):
            measures: dict[str, float] = {}
            try:
                fits[i], measures = _fit_cell(method, args, {**fixed, **cell}, folds)
                outcome = {"converged": fits[i].converged, "error": ""}
            except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
                outcome = {"converged": False, "error": str(error)}
            rows.append({**cell, **measures, **outcome})
            tick(measures.get("log_likelihood", math.nan))
    if not fits:
        raise ValueError(f"every combination failed; the first said: {rows[0]['error']}")
    others = [column for column in COLUMNS if column != criterion]
    table = pd.DataFrame(rows).reindex(columns=[*swept, *others, criterion])
    scores = table[criterion] if criterion == "held_out" else -table[criterion]
    best = int(scores.to_numpy(dtype=float, na_value=-math.inf).argmax())
    return Selection(table, fits, fits[best], cells[best], criterion)


def _check_folds(folds: object, criterion: str) -> None:
    """Refuses numbers of folds that part no rows."""
    if not is_whole(folds):
        raise TypeError(f"folds={folds!r} must be a whole number.")
    if criterion == "held_out" and folds < 2:
        raise ValueError("criterion='held_out' needs folds of at least 2, for example folds=5.")
    if folds < 0 or folds == 1:
        raise ValueError(f"folds={folds} leaves nothing to fit or to score; pass 2 or more, or 0.")


def _is_sweep(value: object) -> bool:
    data = (str, Tensor, np.ndarray, Mapping, pd.DataFrame, pd.Series)
    return isinstance(value, Iterable) and not isinstance(value, data)


def _fit_cell(
    method: EM, args: tuple[object, ...], options: Mapping[str, object], folds: int
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
    """Free parameters, log likelihood, AIC, BIC and ICL of a fit."""
    return {
        "parameters": fit.n_parameters,
        "log_likelihood": fit.log_likelihood,
        "aic": fit.aic,
        "bic": fit.bic,
        "icl": fit.icl,
    }


def _held_out(
    method: EM, args: tuple[object, ...], options: Mapping[str, object], folds: int
) -> float:
    """Mean log likelihood of a row under the model fitted without its fold."""
    given = prepare(*take(method.model, args, options)[:2])
    rows = _row_count(given.args)
    if rows < folds:
        raise ValueError(f"folds={folds} are more than the {rows} rows; pass {rows} at most.")
    fold = torch.arange(rows, device=device_of(given)) % folds
    fold = fold[Draws(method.seed or 0, fold.device).permutation(rows)]
    total = 0.0
    for i in range(folds):
        inside, outside = (
            (
                [_some(v, mask) for v in given.args],
                {name: _some(v, mask) for name, v in given.kwargs.items()},
            )
            for mask in (fold != i, fold == i)
        )
        total += float(
            method.fit(*inside[0], **inside[1]).log_prob(*outside[0], **outside[1]).sum()
        )
    return total / rows


def _row_count(args: tuple[object, ...]) -> int:
    """How many rows the data have, which come first."""
    return len(cast(Sized, args[0]))


def _some(value: object, mask: Tensor) -> object:
    """Those of an argument's rows that a mask keeps; what has no such rows as it is."""
    if isinstance(value, Tensor) and value.dim() and len(value) == len(mask):
        return value[mask]
    return value


def _check_rows(plan: Plan, folds: int) -> None:
    """Refuse to leave out single steps of a chain: those that are left would not be neighbours."""
    if not (plan.chains or plan.structure.steps):
        return
    row = plan.row_plate()
    if row is None or row[1] != _row_count(plan.structure.arguments.args):
        raise ValueError(
            "a held-out score leaves whole sequences out, but there is a single one: leave folds "
            "out and choose by criterion='bic', or pass several sequences, x of shape (S, T)."
        )
    if row[1] < folds:
        raise ValueError(
            f"folds={folds} is more than the {row[1]} sequences; pass folds={row[1]} at most."
        )
