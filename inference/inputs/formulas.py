"""Formulas as arguments of a model: ``formulaic`` makes the matrices, for old data and for new.

The parts of a formula go to the arguments that the ready models share: the response is the model's
first argument, ``X`` the covariates without a column of ones (``intercept`` says whether the model
has one), ``groups`` and ``design`` are the grouping factors and what multiplies their effects,
``correlated`` whether these are. A model takes a formula if it has the arguments that this needs.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ember.inference.inputs.bars import Bar, FormulaText, parse
from ember.inference.inputs.categories import Labels, coded, holds_words, listed
from ember.inference.inputs.model_matrices import (
    check_columns,
    check_complete,
    matrix,
    specification,
)

__all__ = ["Formula", "group_codes"]


Parameters = Mapping[str, inspect.Parameter]
INTERCEPT = "Intercept"


@dataclass(frozen=True)
class Formula:
    """A formula with what it has learnt of a table: how to encode others alike.

    Attributes:
        parts: The formula.
        response: The specification of the response; None if it is a column as it is.
        fixed: The specification of the covariates.
        designs: By the name of a grouping factor, that of what multiplies its effects.
        factors: The columns of each grouping factor.
        labels: The labels of each grouping factor, and of a response of words (under its column).
    """

    parts: FormulaText
    response: Any = None
    fixed: Any = None
    designs: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    labels: dict[str, Labels] = field(default_factory=dict)

    @staticmethod
    def of(text: str, table: pd.DataFrame, parameters: Parameters, model: str) -> "Formula":
        """A formula, fitted to a table.

        Raises:
            ImportError: If ``formulaic`` is not installed.
            ValueError: If the formula cannot be read, does not suit the model or the table.
        """
        parts = parse(text)
        _check_model(parts, parameters, model)
        factors = _factors(parts.bars)
        columns = [column for names in factors.values() for column in names]
        check_columns(columns, table, text)
        plain = _plain(parts.response)
        check_columns([plain] if plain else [], table, text)
        response = None if plain else specification(f"0 + {parts.response}", table)
        designs = {}
        for name, bar in zip(factors, parts.bars, strict=True):
            spec = specification(bar.terms, table)
            if tuple(spec.column_names) != (INTERCEPT,):  # a level alone needs no design
                designs[name] = spec
        labels = {name: group_codes(table, of)[1] for name, of in factors.items()}
        if plain and holds_words(table[plain]):
            labels[plain] = coded(table[plain])[1]
        return Formula(parts, response, specification(parts.fixed, table), designs, factors, labels)

    def arguments(
        self, table: pd.DataFrame, parameters: Parameters, without_response: bool = False
    ) -> dict[str, object]:
        """The model's arguments for the rows of a table, by name.

        Args:
            table: The table of the fit, or another one.
            parameters: The arguments that the model has.
            without_response: Whether a table without the response will do, which is left out then.

        Raises:
            ValueError: If a column is missing, or holds what it cannot hold.
        """
        made: dict[str, object] = {}
        response = self._response(table, without_response)
        if response is not None:
            made[next(iter(parameters))] = response
        fixed = matrix(self.fixed, table)
        if "intercept" in parameters:
            made["intercept"] = INTERCEPT in fixed
            fixed = fixed.drop(columns=INTERCEPT, errors="ignore")
        made["X"] = fixed if fixed.shape[1] else None
        if self.factors:
            check_columns(
                sorted({name for own in self.factors.values() for name in own}),
                table,
                self.parts.text,
            )
            made["groups"] = {
                name: group_codes(table, columns, self.labels[name])[0].rename(name)
                for name, columns in self.factors.items()
            }
        if self.designs:
            made["design"] = {name: matrix(spec, table) for name, spec in self.designs.items()}
            if "correlated" in parameters:
                single = [bar.correlated for bar in self.parts.bars if bar.terms != "1"]
                made["correlated"] = all(single)
        return made

    def _response(self, table: pd.DataFrame, may_miss: bool) -> pd.Series | None:
        """The response of each row, NaN where it is missing."""
        plain = _plain(self.parts.response)
        needed = [plain] if plain else sorted(map(str, self.response.required_variables))
        if may_miss and not set(needed) <= set(table.columns):
            return None
        check_columns(needed, table, self.parts.text)
        if plain is None:
            found = matrix(self.response, table, gaps=True)
            if found.shape[1] != 1:
                raise ValueError(
                    f"formula '{self.parts.text}' has {found.shape[1]} responses "
                    f"({listed(found.columns)}); a model has one."
                )
            return found.iloc[:, 0].rename(self.parts.response)
        column = table[plain]
        return coded(column, self.labels.get(plain))[0] if holds_words(column) else column


def group_codes(
    table: pd.DataFrame, columns: tuple[str, ...], labels: Labels | None = None
) -> tuple[pd.Series, Labels]:
    """The level of each row in one or several columns, as whole numbers, and the levels' labels.

    Levels that are not among the known labels get codes behind them.

    Raises:
        ValueError: If a row has no level.
    """
    check_complete(columns, table, "and each row needs its group")
    series = table[columns[0]]
    if len(columns) > 1:  # ordered by the first column, then by the next
        parts = [coded(table[name]) for name in columns]
        rows = np.stack([codes.to_numpy(dtype="int64") for codes, _ in parts], 1)
        names = [known for _, known in parts]
        every = [_joined(names, row) for row in rows]
        levels = [_joined(names, row) for row in np.unique(rows, axis=0)]
        series = pd.Series(pd.Categorical(every, categories=levels), index=table.index)
    codes, labels = coded(series.rename(":".join(columns)), labels, grows=True)
    whole = codes.astype("int64")
    whole.attrs = dict(codes.attrs)
    return whole, labels


def _joined(names: Sequence[Labels], row: Iterable[int]) -> str:
    return ":".join(labels[code] for labels, code in zip(names, row, strict=True))


def _plain(term: str) -> str | None:
    """The column that a term is as it is."""
    if re.fullmatch("`[^`]+`", term):
        return term[1:-1]
    return term if term.isidentifier() else None


# -- what suits -----------------------------------------------------------------------------------


def _factors(bars: Sequence[Bar]) -> dict[str, tuple[str, ...]]:
    """The columns of each grouping factor; one that comes again is numbered."""
    factors: dict[str, tuple[str, ...]] = {}
    for bar in bars:
        name = base = re.sub(r"\W", "_", "_".join(bar.columns))
        number = 1
        while name in factors:
            number += 1
            name = f"{base}_{number}"
        factors[name] = bar.columns
    return factors


def _check_model(parts: FormulaText, parameters: Parameters, model: str) -> None:
    """Refuses a formula for a model that lacks the arguments of its parts."""
    here = f"model '{model}' takes no formula '{parts.text}'"
    if "X" not in parameters:
        raise ValueError(
            f"{here}, as it has no argument X for covariates; name columns instead, as in "
            "fit(['a', 'b'], data=table)."
        )
    if parts.bars and "groups" not in parameters:
        raise ValueError(
            f"{here}, as it has no groups; leave out {parts.bars[0].text}, or use "
            "linear_mixed_model."
        )
    needs = "groups" in parameters and parameters["groups"].default is inspect.Parameter.empty
    if needs and not parts.bars:
        raise ValueError(f"model '{model}' needs groups; add a term such as (1 | group).")
    designs = [bar for bar in parts.bars if bar.terms != "1"]
    if designs and "design" not in parameters:
        raise ValueError(f"{here}, as it has only intercepts of groups: write (1 | group).")
    if len({bar.correlated for bar in designs}) > 1:
        raise ValueError(
            f"formula '{parts.text}': bars are all single or all double here; write (x || g) as "
            "(1 | g) + (0 + x | g)."
        )
