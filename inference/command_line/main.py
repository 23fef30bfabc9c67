"""The ``ember`` command: fit a model to a table, save the fit, ask it about new rows; or compare.

This is the one place where inference meets models, and only by name: ``--model NAME`` is looked
up in ``ember.models``, ``--model path/to/file.py:function`` in that file.
"""

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ember.inference.command_line.model_data import ModelData, UsageError, model_data
from ember.inference.command_line.output_files import (
    predicted_rows,
    write,
    write_fit,
    write_table,
)
from ember.inference.command_line.parser import help_text, parse
from ember.inference.command_line.saved_fits import TableNotes, notes_of, save
from ember.inference.comparison import Comparison, Method, compare
from ember.inference.em import EM
from ember.inference.fit import Fit
from ember.inference.inputs.arguments import Model
from ember.inference.inputs.tables import check_path, old_faithful, read_raw
from ember.inference.storage.sealed_file import check_target
from ember.inference.svi import SVI

__all__ = ["main"]


MODELS = "ember.models"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 with one sentence on stderr.

    Args:
        argv: The words after ``ember``; those of the process unless given.
    """
    options = parse(argv)
    commands = {
        **{"demo": _demo, "fit": _fit, "compare": _compare},
        **{"show": _show, "predict": _predict},
    }
    run = commands.get(options.command)
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
    print("\nHow sure the maximum-likelihood estimates are, with 95 % intervals:")
    print(_with_errors(comparison.fits[methods[0].name]))
    _save_picture(comparison, output)


def _with_errors(fit: Fit) -> str:
    """The estimates with their standard errors; what has none is said on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = fit.summary(errors=True)
    for each in caught:
        _say(str(each.message))
    return table.rename_axis(None).to_string(float_format="{:.6g}".format)


def _warm_up(model: Model) -> None:
    """Short fits that let torch load what it loads on first use: no method should pay for that."""
    rows = old_faithful().iloc[::8]
    EM(model, max_iter=1, seed=0).fit(rows, components=2)
    SVI(model, steps=1, seed=0).fit(rows, components=2)


def _fit(options: argparse.Namespace) -> None:
    if options.save is not None:
        _refuse_same(check_target(options.save), options.data)
    model, output, data = _prepared(options, (".json", ".png", ".csv", ".parquet"))
    em = EM(
        model,
        options.objective,
        restarts=options.restarts,
        seed=options.seed,
        progress=sys.stderr.isatty(),
    )
    fit = em.fit(*data.args, **data.kwargs)
    data.say_notes(_say)
    print(fit)
    if options.errors:
        print(f"Standard errors, 95 % intervals\n{_with_errors(fit)}")
    if data.labels:
        print(data.legend())
    if options.save is not None:
        save(fit, data, options.save, not options.without_data)
        _say(f"saved {options.save}")
    if output is not None:
        write_fit(fit, data, output, options.errors)
        _say(f"wrote {output}")


def _compare(options: argparse.Namespace) -> None:
    model, output, data = _prepared(options, (".png",))
    seed, progress = options.seed, sys.stderr.isatty()
    methods: list[Method] = [
        EM(model, "mle", restarts=options.restarts, seed=seed, progress=progress),
        EM(model, "map", restarts=options.restarts, seed=seed, progress=progress),
        SVI(model, "delta", steps=options.steps, seed=seed, progress=progress),
        SVI(model, "normal", steps=options.steps, seed=seed, progress=progress),
    ]
    comparison = compare(methods, *data.args, **data.kwargs)
    data.say_notes(_say)
    print(comparison)
    if data.labels:
        print(data.legend())
    _save_picture(comparison, output)


def _show(options: argparse.Namespace) -> None:
    fit, notes = _loaded(options)
    output = _output(options.output, (".json", ".png"))
    print(fit)
    data = notes.of_no_table()
    if data.labels:
        print(data.legend())
    if output is not None:
        write_fit(fit, data, output)
        _say(f"wrote {output}")


def _predict(options: argparse.Namespace) -> None:
    check_path(options.data)
    output = _output(options.output, (".csv", ".parquet"))
    _refuse_same(output, options.data)
    fit, notes = _loaded(options)
    said: list[str] = []
    raw = read_raw(options.data, options.sep, options.decimal, options.header, said.append)
    rows = predicted_rows(fit, raw, notes.arguments(raw, options.data, said.append))
    for note in said:
        _say(note)
    if output is None:
        print(rows.to_csv(index=False), end="")
    else:
        write_table(rows, output)
        _say(f"wrote {output}")


def _loaded(options: argparse.Namespace) -> tuple[Fit, TableNotes]:
    """A saved fit. Code that is not Ember's is run only if the user names it here and now."""
    notes = notes_of(options.fit)
    if options.model is None and notes.model not in importlib.import_module(MODELS).__all__:
        raise UsageError(
            f"{options.fit} holds a fit of '{notes.model}', which is no ready model; give yours "
            "with --model path/to/file.py:function."
        )
    fit = Fit.load(options.fit, _model(options.model or notes.model))
    return fit, notes.with_columns_of(fit)


def _prepared(
    options: argparse.Namespace, suffixes: Sequence[str]
) -> tuple[Model, Path | None, ModelData]:
    """The model, where the result goes, and the data: all that can be wrong before any work."""
    check_path(options.data)
    model = _model(options.model)
    output = _output(options.output, suffixes)
    _refuse_same(output, options.data)
    return model, output, model_data(options, model)


def _refuse_same(output: Path | None, data: str) -> None:
    if output is not None and output.resolve() == Path(data).resolve():
        raise UsageError(f"{output} is the file of the data; choose another name.")


# -- what the user names ------------------------------------------------------------------------
def _model(name: str) -> Model:
    if ":" in name:
        path, _, function = name.rpartition(":")
        return _function(_module(Path(path)), function, path)
    return _named_model(name)


def _named_model(name: str) -> Model:
    models = importlib.import_module(MODELS)
    known = sorted(models.__all__)
    if name not in known:
        raise UsageError(
            f"there is no model '{name}'; choose one of {', '.join(known)}, or give a function of "
            "your own as path/to/file.py:function."
        )
    model: Model = getattr(models, name)
    return model


def _module(path: Path) -> ModuleType:
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


def _function(module: ModuleType, name: str, path: str) -> Model:
    function: Model | None = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{path} has no function '{name}'.")
    return function


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
        write(output, lambda: comparison.plot().savefig(output, dpi=150))
        _say(f"wrote {output}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())
