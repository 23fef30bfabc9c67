"""From a file and the words of the command line to the arguments of a model."""

import argparse
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from ember.inference.inputs.arguments import Model
from ember.inference.inputs.tables import read_raw, select_columns

__all__ = ["ModelData", "UsageError", "model_data"]


VECTORS = ("count_mixture", "hidden_markov_categorical", "hidden_markov_poisson", "poisson_mixture")
YES_OR_NO = ("bernoulli_mixture", "hidden_markov_bernoulli")
CATEGORIES = ("categorical_mixture", "hidden_markov_categorical", *YES_OR_NO)


class UsageError(Exception):
    """Something that the user gave cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class ModelData:
    """What a model is called with, and the table that it was taken from.

    Attributes:
        raw: All columns of the file.
        columns: Names of the columns in use.
        labels: The labels behind the codes of columns of words.
        response: The name of the response of a regression, which comes before the columns.
        notes: What the reader of the report should know of how the file was read.
    """

    raw: pd.DataFrame
    columns: tuple[str, ...]
    args: tuple[object, ...]
    kwargs: dict[str, object]
    labels: Mapping[str, Sequence[str]]
    notes: Sequence[str]
    response: str | None = None

    def say_notes(self, say: Callable[[str], object]) -> None:
        """Tells how the file was read, once it is known that this led to something."""
        for note in self.notes:
            say(note)

    def legend(self) -> str:
        """Which code stands for which label."""
        lines = [
            f"  {name}: {', '.join(f'{code} = {label}' for code, label in enumerate(labels))}"
            for name, labels in self.labels.items()
        ]
        return "\n".join(["Labels", *lines])


def model_data(options: argparse.Namespace, model: Model) -> ModelData:
    """Reads the file, then checks that the model gets all it needs.

    Raises:
        UsageError: If options do not fit the model or the file.
        ValueError: If the file cannot be read.
    """
    notes: list[str] = []
    raw = read_raw(options.data, options.sep, options.decimal, options.header, notes.append)
    kwargs = _keywords(options, model)
    columns = None if options.columns is None else _names(options.columns)
    beside = [name for name in (options.response, options.frequency) if name is not None]
    if columns is not None:
        columns += [name for name in beside if name not in columns]
    from_file = ":" in options.model  # such a model may be one of categories
    categories = options.model in CATEGORIES or (from_file and columns is not None)
    table = select_columns(raw, options.data, columns, notes.append, categories)
    labels = table.attrs["labels"]
    if options.model in YES_OR_NO:
        _check_two(labels, options.model)
    if options.frequency is not None:
        column = _taken(table, options.frequency, "--frequency", labels)
        kwargs["frequency"] = torch.from_numpy(column.to_numpy(copy=True))
    if options.response is not None:
        args: tuple[object, ...] = (_taken(table, options.response, "--response", labels), table)
    elif options.model in VECTORS and table.shape[1] == 1:
        args = (table.iloc[:, 0],)
    else:
        args = (table,)
    used = {name: levels for name, levels in labels.items() if name in table}
    columns_used = tuple(map(str, table.columns))
    return ModelData(raw, columns_used, args, kwargs, used, notes, options.response)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _keywords(options: argparse.Namespace, model: Model) -> dict[str, object]:
    """The model's keyword arguments, checked against its signature."""
    kwargs = dict(_option(text) for text in options.option)
    parameters = inspect.signature(model).parameters
    names = list(parameters)[1:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if options.components is not None:
        # Chains call their number of components "states".
        count = "states" if "states" in names and "components" not in names else "components"
        if kwargs.setdefault(count, options.components) != options.components:
            raise UsageError(f"--components and --option {count}=... disagree; give one of them.")
    given = {*kwargs}
    if options.response is not None:
        if "X" not in names:
            raise UsageError(f"model '{options.model}' is no regression; leave out --response.")
        given.add("X")
    for name in kwargs:
        if name not in names and not takes_any:
            raise UsageError(
                f"model '{options.model}' has no option '{name}'; "
                f"its options are {', '.join(names) or 'none'}."
            )
    for name in names:
        parameter = parameters[name]
        collects = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not collects and name not in given:
            raise UsageError(f"model '{options.model}' needs '{name}'; give it with {_give(name)}.")
    if options.frequency is not None and "frequency" not in names:
        raise UsageError(f"model '{options.model}' takes no frequencies; leave out --frequency.")
    return kwargs


def _give(name: str) -> str:
    """How an argument that a model needs is given on the command line."""
    if name in ("components", "states"):
        return "--components N"
    return "--response COLUMN" if name == "X" else f"--option {name}=..."


def _option(text: str) -> tuple[str, object]:
    """``key=value``, the value read as JSON where it is JSON, else as a word."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--option {text} is not of the form key=value.")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _taken(
    table: pd.DataFrame, name: str, option: str, labels: Mapping[str, Sequence[str]]
) -> pd.Series:
    """A column of numbers, taken out of the table; others must remain."""
    if name not in table.columns or name in labels or table.shape[1] < 2:
        raise UsageError(
            f"{option} names '{name}', which is no column of numbers beside the data; the columns "
            f"are {', '.join(map(str, table.columns))}."
        )
    return table.pop(name)


def _check_two(labels: Mapping[str, Sequence[str]], model: str) -> None:
    for name, levels in labels.items():
        if len(levels) > 2:
            raise UsageError(
                f"column '{name}' has {len(levels)} labels, but {model} takes yes-or-no items; "
                "use categorical_mixture, or choose other columns."
            )
