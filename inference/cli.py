"""The ``ember`` command: fit a model to a table, compare methods, or see a demonstration.

This is the one place where inference meets models, and only by name: ``--model NAME`` is looked
up in ``ember.models``, ``--model path/to/file.py:function`` in that file.
"""

import argparse
import importlib
import importlib.util
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ember.inference.command_line import help_text, parse
from ember.inference.comparison import Comparison, Method, compare
from ember.inference.em import EM
from ember.inference.fit import Fit
from ember.inference.plotting import draw_fits
from ember.inference.svi import SVI
from ember.inference.tables import old_faithful, read_table

__all__ = ["main"]

MODELS = "ember.models"


class UsageError(Exception):
    """Something that the user gave cannot be used; the message is one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 with one sentence on stderr.

    Args:
        argv: The words after ``ember``; those of the process unless given.
    """
    options = parse(argv)
    run = {"demo": _demo, "fit": _fit, "compare": _compare}.get(options.command)
    if run is None:
        _say(help_text())
        return 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them stands in the report
        try:
            run(options)
        except (UsageError, ValueError, TypeError) as error:
            _say(f"ember: error: {_sentence(error)}")
            return 2
        except Exception as error:
            # From a model of the user's own, or from us: still a sentence and no traceback.
            _say(f"ember: error: {type(error).__name__}: {_sentence(error)}")
            return 2
        except KeyboardInterrupt:
            _say("ember: interrupted")
            return 130
    return 0


# -- the commands -------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> None:
    model = _named_model("gaussian_mixture")
    output = _output(options.output, (".png",))
    _say("Old Faithful: 272 eruptions, their duration and the wait for the next, in minutes.")
    _say("A mixture of two Gaussians, fitted by four methods:")
    _warm_up(model)
    methods: list[Method] = [
        EM(model, "mle", seed=0, progress=True),
        EM(model, "map", seed=0, progress=True),
        SVI(model, "delta", steps=options.steps, seed=0, progress=True),
        SVI(model, "normal", steps=options.steps, seed=0, progress=True),
    ]
    comparison = compare(methods, old_faithful(), components=2)
    print(comparison)
    _save_picture(comparison, output)


def _warm_up(model: Callable[..., Any]) -> None:
    """Short fits that let torch load what it loads on first use: no method should pay for that."""
    rows = old_faithful().iloc[::8]
    EM(model, max_iter=1, seed=0).fit(rows, components=2)
    SVI(model, steps=1, seed=0).fit(rows, components=2)


def _fit(options: argparse.Namespace) -> None:
    model = _model(options.model)
    output = _output(options.output, (".json", ".png"))
    table, kwargs = _arguments(options, model)
    em = EM(
        model,
        options.objective,
        restarts=options.restarts,
        seed=options.seed,
        progress=sys.stderr.isatty(),
    )
    fit = em.fit(*_data(table, options.model), **kwargs)
    print(fit)
    if output is None:
        return
    if output.suffix == ".json":
        _write(output, lambda: output.write_text(json.dumps(_as_json(fit), indent=2) + "\n"))
    else:
        figure = draw_fits({fit.method: fit}, {fit.method: fit.params}, tuple(table.columns))
        _write(output, lambda: figure.savefig(output, dpi=150))


def _compare(options: argparse.Namespace) -> None:
    model = _model(options.model)
    output = _output(options.output, (".png",))
    table, kwargs = _arguments(options, model)
    common: dict[str, Any] = {"seed": options.seed, "progress": sys.stderr.isatty()}
    methods: list[Method] = [
        EM(model, "mle", restarts=options.restarts, **common),
        EM(model, "map", restarts=options.restarts, **common),
        SVI(model, "delta", steps=options.steps, **common),
        SVI(model, "normal", steps=options.steps, **common),
    ]
    comparison = compare(methods, *_data(table, options.model), **kwargs)
    print(comparison)
    if output is not None:
        _save_picture(comparison, output)


# -- what the user names ------------------------------------------------------------------------


def _model(name: str) -> Callable[..., Any]:
    if ":" in name:
        path, _, function = name.rpartition(":")
        return _function(_module(Path(path)), function, path)
    return _named_model(name)


def _named_model(name: str) -> Callable[..., Any]:
    models = importlib.import_module(MODELS)
    known = sorted(models.__all__)
    if name not in known:
        raise UsageError(
            f"there is no model '{name}'; choose one of {', '.join(known)}, or give a function of "
            "your own as path/to/file.py:function."
        )
    model: Callable[..., Any] = getattr(models, name)
    return model


def _module(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"there is no file {path} to take the model from.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file; a model is given as path/to/file.py:function.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _function(module: Any, name: str, path: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        raise UsageError(f"{path} has no function '{name}'.")
    function: Callable[..., Any] = found
    return function


def _arguments(
    options: argparse.Namespace, model: Callable[..., Any]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The data, and the model's keyword arguments, checked against its signature."""
    kwargs = dict(_option(text) for text in options.option)
    parameters = inspect.signature(model).parameters
    names = list(parameters)[1:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if options.components is not None:
        # Chains call their number of components "states".
        count = "states" if "states" in names and "components" not in names else "components"
        if kwargs.setdefault(count, options.components) != options.components:
            raise UsageError(f"--components and --option {count}=... disagree; give one of them.")
    for name in kwargs:
        if name not in names and not takes_any:
            raise UsageError(
                f"model '{options.model}' has no option '{name}'; "
                f"its options are {', '.join(names) or 'none'}."
            )
    for name in names:
        parameter = parameters[name]
        collects = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not collects and name not in kwargs:
            give = f"--{name} N" if name == "components" else f"--option {name}=..."
            give = "--components N" if name == "states" else give
            raise UsageError(f"model '{options.model}' needs '{name}'; give it with {give}.")
    columns = None
    if options.columns is not None:
        columns = [name.strip() for name in options.columns.split(",")]
    if options.frequency is None:
        return read_table(options.data, columns, _say), kwargs
    if "frequency" not in names:
        raise UsageError(f"model '{options.model}' takes no frequencies; leave out --frequency.")
    if columns is not None and options.frequency not in columns:
        columns.append(options.frequency)
    table = read_table(options.data, columns, _say)
    if options.frequency not in table.columns or table.shape[1] < 2:
        raise UsageError(
            f"--frequency names '{options.frequency}', which is no column of numbers beside the "
            f"data; the columns are {', '.join(table.columns)}."
        )
    kwargs["frequency"] = torch.from_numpy(table.pop(options.frequency).to_numpy(copy=True))
    return table, kwargs


def _data(table: pd.DataFrame, model: str) -> tuple[Any, ...]:
    """The table as the model takes it: a single column of a chain of counts is a vector."""
    takes_vectors = model in ("hidden_markov_poisson", "hidden_markov_categorical")
    if takes_vectors and table.shape[1] == 1:
        return (table.iloc[:, 0],)
    return (table,)


def _option(text: str) -> tuple[str, Any]:
    """``key=value``, the value read as JSON where it is JSON, else as a word."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--option {text} is not of the form key=value.")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


# -- what is written ----------------------------------------------------------------------------


def _output(path: str | None, suffixes: Sequence[str]) -> Path | None:
    """Checks where the result goes before any work is done."""
    if path is None:
        return None
    output = Path(path)
    if output.suffix.lower() not in suffixes:
        raise UsageError(f"--output {path} must end in {' or '.join(suffixes)}.")
    if not output.parent.is_dir():
        raise UsageError(f"--output {path}: there is no folder {output.parent}.")
    return output.with_suffix(output.suffix.lower())


def _save_picture(comparison: Comparison, output: Path | None) -> None:
    if output is not None:
        _write(output, lambda: comparison.plot().savefig(output, dpi=150))


def _write(path: Path, save: Callable[[], Any]) -> None:
    try:
        save()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error
    _say(f"wrote {path}")


def _as_json(fit: Fit) -> dict[str, Any]:
    return {
        "method": fit.method,
        "params": {name: value.tolist() for name, value in fit.params.items()},
        "log_likelihood": fit.log_likelihood,
        "log_posterior": fit.log_posterior,
        "converged": fit.converged,
        "stop_reason": fit.stop_reason,
        "iterations": fit.iterations,
        "seconds": fit.seconds,
        "history": fit.history.tolist(),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())
