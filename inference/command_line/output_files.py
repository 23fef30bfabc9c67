"""What ``ember fit --output`` writes: the fit, a picture, or the rows with their states."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

from ember.inference.command_line.model_data import ModelData, UsageError
from ember.inference.fit import Fit
from ember.inference.queries.conjugate.posterior import ConjugatePosterior
from ember.inference.queries.gaussian.posterior import GaussianPosterior
from ember.inference.queries.on_nodes import NodePosterior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["assigned_rows", "predicted_rows", "write", "write_fit", "write_table"]


CONTINUOUS = (GaussianPosterior, ConjugatePosterior, NodePosterior)
Continuous = GaussianPosterior | ConjugatePosterior | NodePosterior


def write_fit(fit: Fit, data: ModelData, path: Path, errors: bool = False) -> None:
    """Writes a fit in the way that the path's suffix asks for.

    Args:
        fit: The fit.
        data: What it was fitted to.
        path: Where to.
        errors: Whether standard errors belong to it (.json).

    Raises:
        UsageError: If the file cannot be written, or there is no state of rows to write.
    """
    match path.suffix:
        case ".json":
            text = json.dumps(_as_json(fit, data, errors), indent=2) + "\n"
            write(path, lambda: path.write_text(text, encoding="utf-8"))
        case ".png":
            figure = _picture(fit, data)
            write(path, lambda: figure.savefig(path, dpi=150))
        case _:
            write_table(assigned_rows(fit, data.raw), path)


def write_table(rows: pd.DataFrame, path: Path) -> None:
    """Writes a table as Parquet or CSV.

    Raises:
        UsageError: If the file cannot be written.
    """
    save = rows.to_parquet if path.suffix == ".parquet" else rows.to_csv
    write(path, lambda: save(path, index=False))


def write(path: Path, save: Callable[[], object]) -> None:
    """Runs what saves a file.

    Raises:
        UsageError: If the file cannot be written.
    """
    try:
        save()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error
    except ImportError as error:
        raise UsageError(
            "writing Parquet files needs pyarrow; install it with: pip install pyarrow"
        ) from error


def assigned_rows(fit: Fit, table: pd.DataFrame) -> pd.DataFrame:
    """A table with the most probable value of every latent site, and the probability of each.

    Raises:
        UsageError: If the model has no such site.
    """
    out = _with_latents(fit, table, ())
    if len(out.columns) == len(table.columns):
        raise UsageError("the model has no latent site with a value for each row of the table.")
    return out


def predicted_rows(fit: Fit, table: pd.DataFrame, args: tuple[object, ...]) -> pd.DataFrame:
    """New rows with the values of their latents, and the log likelihood of each in ``log_prob``.

    Args:
        fit: The fit.
        table: The rows.
        args: The same, as the model takes its data.
    """
    out = _with_latents(fit, table, args)
    log_prob = fit.log_prob(*args)
    if log_prob.shape == (len(table),):
        out[_unused("log_prob", table)] = log_prob.cpu().numpy()
    if len(out.columns) == len(table.columns):
        raise UsageError("the model has nothing to say of single rows of the table.")
    return out


def _with_latents(fit: Fit, table: pd.DataFrame, args: tuple[object, ...]) -> pd.DataFrame:
    """A table with what is known of the latents of each row.

    The columns are called ``assignment``, ``assignment_probability_0``, ... after the site. In a
    chain the values are those of the most probable path. Of a continuous latent they are the
    posterior mean and standard deviation, ``level``, ``level_stddev``; of vectors those of each
    entry, ``factors_0``, ``factors_0_stddev``, ...
    """
    out = table.apply(_as_whole)
    predicted = fit.predict(*args) if _latents(fit, args) else {}
    if isinstance(predicted, Tensor):
        predicted = {_site_name(fit, args): predicted}
    for name, values in predicted.items():
        found = fit.posterior(name, *args)
        column = _unused(name, table)
        if isinstance(found, CONTINUOUS):
            _add_means(out, column, found)
        elif values.shape == (len(table),) and found.probs.dim() == 2:
            whole = bool(values.isfinite().all()) and not bool((values % 1).any())
            out[column] = (values.long() if whole else values).cpu().numpy()
            for state in range(found.probs.shape[1]):
                out[f"{column}_probability_{state}"] = found.probs[:, state].cpu().numpy()
    return out


def _unused(name: str, table: pd.DataFrame) -> str:
    """A name that is no column of the table yet."""
    while name in table.columns:
        name += "_"
    return name


def _add_means(out: pd.DataFrame, column: str, found: Continuous) -> None:
    """Adds means and standard deviations, if there is a value for each row."""
    if found.batch_shape != (len(out),):
        return
    if found.mean.dim() == 1:
        out[column], out[f"{column}_stddev"] = found.mean.cpu().numpy(), found.stddev.cpu().numpy()
        return
    means, deviations = found.mean.flatten(1), found.stddev.flatten(1)
    for k in range(means.shape[1]):
        out[f"{column}_{k}"] = means[:, k].cpu().numpy()
        out[f"{column}_{k}_stddev"] = deviations[:, k].cpu().numpy()


def _as_whole(column: pd.Series) -> pd.Series:
    """Whole numbers without the decimal point that a file did not have."""
    if column.dtype != "float64" or not column.dropna().mod(1).eq(0).all():
        return column
    return column.astype("Int64")


def _latents(fit: Fit, args: tuple[object, ...]) -> list[str]:
    """All latent sites."""
    structure = fit.plan_for(args, {}).structure
    return [*structure.latent, *structure.gaussian, *structure.conjugate, *structure.units]


def _site_name(fit: Fit, args: tuple[object, ...]) -> str:
    """The name of the one latent site, steps and observed parts of it put together."""
    (first, *others) = _latents(fit, args)
    first = first.removesuffix("_unobserved")
    return first.rpartition("_")[0] if others else first


def _picture(fit: Fit, data: ModelData) -> "Figure":
    """The fit's own picture; of a model that has none, how its fit went."""
    from ember.inference.reports.drawing.comparison import draw_fits

    try:
        return fit.plot()
    except ValueError:
        return draw_fits({fit.method: fit}, {fit.method: fit.params}, data.columns)


def _as_json(fit: Fit, data: ModelData, errors: bool) -> dict[str, object]:
    found = fit.standard_errors() if errors else {}
    intervals = fit.confidence_intervals() if errors else {}
    sure = {
        "standard_errors": {name: _known(value) for name, value in found.items()},
        "intervals": {name: [_known(end) for end in ends] for name, ends in intervals.items()},
    }
    return {
        "method": fit.method,
        "columns": list(data.columns),
        "labels": {name: list(levels) for name, levels in data.labels.items()},
        "params": {name: value.tolist() for name, value in fit.params.items()},
        "deterministic": {name: value.tolist() for name, value in fit.deterministic.items()},
        "log_likelihood": fit.log_likelihood,
        "log_posterior": fit.log_posterior,
        "n_parameters": fit.n_parameters,
        "n_observations": fit.n_observations,
        "aic": fit.aic,
        "bic": fit.bic,
        "converged": fit.converged,
        "stop_reason": fit.stop_reason,
        "iterations": fit.iterations,
        "seconds": fit.seconds,
        "history": fit.history.tolist(),
        **(sure if errors else {}),
    }


def _known(value: Tensor) -> Any:
    """Nested lists of numbers, with null where there is none."""
    if value.dim():
        return [_known(each) for each in value]
    return None if bool(value.isnan()) else float(value)
