"""A user's tables as arguments of a model: columns by name, words as codes, formulas.

What is learnt of the tables of a fit is its ``Recipe``, by which other tables are read alike.
"""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from ember.inference.inputs.arguments import Model
from ember.inference.inputs.categories import Labels, listed, with_words
from ember.inference.inputs.chunks import Chunk
from ember.inference.inputs.formulas import Formula, Parameters, group_codes
from ember.inference.inputs.words import noted, recoded

__all__ = [
    "Recipe",
    "Taken",
    "in_order_of",
    "names_columns",
    "recipe_of",
    "take",
    "take_again",
    "without_rows",
]


DATA = "data"  # the keyword of the table, unless the model has an argument of that name
GROUPS = "groups"  # the argument whose values are levels, whatever they are called
WORD, TENSOR = re.compile(r"\bstr\b"), re.compile(r"Tensor|ndarray|Series|DataFrame")


@dataclass(frozen=True)
class Recipe:
    """How the arguments of a fit were made from tables.

    Attributes:
        names: By argument, the column, the columns or the mapping to columns that it was given as.
        labels: By argument (``groups.school`` of a mapping), the labels of its columns of words.
        formula: The formula; None without one.
        text: Its text, which a file keeps of it.
        columns: By argument, the columns of a table that it was given as.
    """

    names: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, dict[str, Labels]] = field(default_factory=dict)
    formula: Formula | None = None
    text: str = ""
    columns: dict[str, list[str]] = field(default_factory=dict)

    def bare(self) -> "Recipe":
        """What a file can hold of it: a formula is code, of which the text alone is kept."""
        return dataclasses.replace(self, formula=None)

    @property
    def by_column(self) -> dict[str, Labels]:
        """The labels by column alone."""
        return {
            column: labels for known in self.labels.values() for column, labels in known.items()
        }


class Taken(NamedTuple):
    """Arguments of a model without names and words, and how they were made."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    recipe: Recipe


def take(model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Taken:
    """The arguments of a model, columns that are named taken from ``data=``, words coded.

    Data frames stay what they are, so that their columns keep their names.

    Raises:
        ValueError: If a column is missing, or a formula does not suit the model.
        TypeError: If ``data`` is no data frame.
        ImportError: If a formula is given, and ``formulaic`` is not installed.
    """
    parameters = _parameters(model)
    table, named = _table(parameters, args, kwargs)
    names, formula = dict[str, Any](), None
    places = list(parameters)[: len(args)]
    if table is not None:
        if args and _is_formula(args[0]):
            formula, args, named = _by_formula(model, parameters, table, args, named)
        names = {
            name: value
            for name, value in [*zip(places, args, strict=False), *named.items()]
            if _is_column_of(parameters, name, value)
        }
        made = {name: _taken(table, name, value) for name, value in names.items()}
        args = tuple(
            made.get(places[i], value) if i < len(places) else value for i, value in enumerate(args)
        )
        named |= {name: value for name, value in made.items() if name in named}
    else:
        _check_no_names(parameters, args)
    labels: dict[str, dict[str, Labels]] = {}
    places += [str(i) for i in range(len(places), len(args))]
    columns = recipe_of(model, args, named).columns
    args = tuple(noted(v, places[i], i == 0, labels) for i, v in enumerate(args))
    first = next(iter(parameters), "")
    named = {name: noted(value, name, name == first, labels) for name, value in named.items()}
    text = formula.parts.text if formula else ""
    return Taken(args, named, Recipe(names, labels, formula, text, columns))


def take_again(
    model: Model,
    recipe: Recipe,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    without_response: bool = False,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for other rows than those of a fit, encoded as they were there.

    Args:
        model: The model.
        recipe: How the arguments of the fit were made.
        args: New arguments, as for the fit.
        kwargs: The same by keyword; ``data`` is a table with the columns that the fit was given.
        without_response: Whether the model's first argument is left out if the table lacks it.

    Raises:
        ValueError: If a column is missing, or has a label that the fit did not know. The columns
            of a data frame are told by their names, whatever their order.
    """
    parameters = _parameters(model)
    table, named = _table(parameters, args, kwargs)
    first = next(iter(parameters), "")
    if table is not None:
        if args:
            raise ValueError(f"new rows come by {DATA}= alone, or by the arguments of the model.")
        named = _from_table(parameters, recipe, table, named, without_response)
    places = [*parameters][: len(args)]
    places += [str(i) for i in range(len(places), len(args))]
    known = recipe.labels
    args = tuple(_in_order(v, recipe.columns.get(places[i])) for i, v in enumerate(args))
    named = {name: _in_order(value, recipe.columns.get(name)) for name, value in named.items()}
    new = tuple(recoded(value, places[i], i > 0, known) for i, value in enumerate(args))
    return new, {n: recoded(value, n, n != first, known) for n, value in named.items()}


def names_columns(model: Model, name: str, value: object) -> bool:
    """Whether a value of an argument names columns, beside a table."""
    return _is_column_of(_parameters(model), name, value)


def recipe_of(model: Model, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Recipe:
    """What tables of numbers tell of the columns of their like."""
    places = [*_parameters(model)][: len(args)]
    places += [str(i) for i in range(len(places), len(args))]
    given = [*zip(places, args, strict=True), *kwargs.items()]
    return Recipe(columns={name: known for name, value in given if (known := _columns(value))})


def without_rows(value: object) -> object:
    """A piece of data with its tables' columns alone; what is no table is left out."""
    if isinstance(value, pd.DataFrame):
        return value.iloc[:0]
    if isinstance(value, Mapping):
        return {name: without_rows(own) for name, own in value.items()}
    if isinstance(value, tuple):
        return tuple(map(without_rows, value))
    return value.without_rows() if isinstance(value, Chunk) else None


def in_order_of(first: object, value: object) -> object:
    """A piece of data with the columns of its tables in the order of the first piece.

    Raises:
        ValueError: If it lacks one of them.
    """
    if isinstance(first, pd.DataFrame):
        return _in_order(value, _columns(first) or None)
    if isinstance(first, Mapping) and isinstance(value, Mapping):
        return {name: in_order_of(first.get(name), own) for name, own in value.items()}
    if isinstance(first, tuple) and isinstance(value, tuple) and len(first) == len(value):
        return tuple(map(in_order_of, first, value))
    return value


def _columns(value: object) -> list[str]:
    """The columns of a table, if each has a name of its own."""
    if not isinstance(value, pd.DataFrame) or not value.columns.is_unique:
        return []
    return [*value.columns] if all(isinstance(name, str) for name in value.columns) else []


def _in_order(value: object, known: list[str] | None) -> object:
    """A table with the columns that the fit was given, in their order there."""
    if known is None or not isinstance(value, pd.DataFrame) or not _columns(value):
        return value
    absent = [name for name in known if name not in value.columns]
    if absent:
        raise ValueError(
            f"the table lacks {listed(absent)} of the columns of the fit, {listed(known)}; its "
            f"own are {listed(value.columns)}: rename them, or pass table.to_numpy() to take them "
            "by their places."
        )
    return value if [*value.columns] == known else value[known]


def _is_column_of(parameters: Parameters, name: str, value: object) -> bool:
    """Whether an argument is given by the names of columns: words where no option is asked for."""
    parameter = parameters.get(name)
    if parameter is None or not _is_name(value):
        return False
    asked = str(parameter.annotation)
    words = bool(WORD.search(asked)) and not TENSOR.search(asked)
    return not words and not isinstance(parameter.default, str)


# -- by name --------------------------------------------------------------------------------------


def _parameters(model: Model) -> Parameters:
    """The arguments of a model that have names."""
    try:
        return inspect.signature(model).parameters
    except (TypeError, ValueError):
        return {}


def _table(
    parameters: Parameters, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[pd.DataFrame | None, dict[str, Any]]:
    """The table that columns are taken from, and the other keyword arguments."""
    named = dict(kwargs)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if DATA not in named or DATA in parameters or takes_any or not parameters:
        return None, named
    table = named.pop(DATA)
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"{DATA}= takes the data frame whose columns the other arguments name, not "
            f"{type(table).__name__}."
        )
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()].unique()
        raise ValueError(f"{DATA}= has several columns {listed(twice)}; give each its own name.")
    return with_words(table), named


def _is_name(value: object) -> bool:
    """Whether a value may stand for columns: a word, or a list or mapping of words."""
    if isinstance(value, str):
        return True
    parts = list(value.values()) if isinstance(value, dict) else value
    return isinstance(parts, list) and bool(parts) and all(isinstance(part, str) for part in parts)


def _is_formula(value: object) -> bool:
    return isinstance(value, str) and "~" in value


def _taken(table: pd.DataFrame, argument: str, names: Any) -> Any:
    """The columns that an argument names; of groups their levels."""
    if isinstance(names, dict):
        return {key: _taken(table, argument, name) for key, name in names.items()}
    every = [names] if isinstance(names, str) else names
    absent = [name for name in every if name not in table.columns]
    if absent:
        raise ValueError(
            f"argument '{argument}' names {listed(absent)}, which the table does not have; its "
            f"columns are {listed(table.columns)}."
        )
    if isinstance(names, str) and argument == GROUPS:
        return group_codes(table, (names,))[0]
    return table[names]


def _check_no_names(parameters: Parameters, args: tuple[Any, ...]) -> None:
    """Refuses words in the place of data."""
    if not args or not isinstance(args[0], str) or not parameters:
        return
    first = next(iter(parameters))
    if _is_formula(args[0]) or TENSOR.search(str(parameters[first].annotation)):
        raise ValueError(
            f"argument '{first}' is given as '{args[0]}'; pass the table with its columns too: "
            f"{DATA}=table."
        )


def _by_formula(
    model: Model,
    parameters: Parameters,
    table: pd.DataFrame,
    args: tuple[Any, ...],
    named: dict[str, Any],
) -> tuple[Formula, tuple[Any, ...], dict[str, Any]]:
    """A formula, and the arguments that it makes beside those given."""
    if len(args) > 1:
        raise ValueError("behind a formula the other arguments are passed by name.")
    formula = Formula.of(args[0], table, parameters, getattr(model, "__name__", "of yours"))
    made = formula.arguments(table, parameters)
    twice = [name for name in made if name in named]
    if twice:
        raise ValueError(f"the formula '{args[0]}' says already what {listed(twice)} is.")
    response = made.pop(next(iter(parameters)))
    return formula, (response,), {**made, **named}


def _from_table(
    parameters: Parameters,
    recipe: Recipe,
    table: pd.DataFrame,
    named: dict[str, Any],
    without_response: bool,
) -> dict[str, Any]:
    """The arguments that a new table makes, by name."""
    if recipe.text and recipe.formula is None:
        raise ValueError(
            "a formula is code, which the file of a fit does not hold; give it again: "
            f"Fit.load(path, model, '{recipe.text}', data=table)."
        )
    if not recipe.names and recipe.formula is None:
        raise ValueError(
            f"the fit names no columns, so {DATA}= has none to take; pass the arguments of the "
            "model themselves."
        )
    made: dict[str, Any] = {}
    if recipe.formula is not None:
        made = recipe.formula.arguments(table, parameters, without_response)
    first = next(iter(parameters))
    for name, value in recipe.names.items():
        left_out = without_response and name == first and isinstance(value, str)
        if not (left_out and value not in table.columns):
            made[name] = _again(table, recipe, name, value)
    return {**made, **named}


def _again(table: pd.DataFrame, recipe: Recipe, argument: str, names: Any) -> Any:
    """The columns that an argument named, of a new table; of groups by the levels known."""
    if isinstance(names, dict):
        parts = {key: f"{argument}.{key}" for key in names}
        return {key: _level_codes(table, recipe, parts[key], name) for key, name in names.items()}
    return _level_codes(table, recipe, argument, names)


def _level_codes(table: pd.DataFrame, recipe: Recipe, where: str, name: Any) -> Any:
    argument = where.partition(".")[0]
    if argument == GROUPS and isinstance(name, str) and name in table.columns:
        return group_codes(table, (name,), recipe.labels.get(where, {}).get(name))[0]
    return _taken(table, argument, name)
