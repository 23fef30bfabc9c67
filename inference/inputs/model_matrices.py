"""Model matrices by ``formulaic``: of the table of a fit, and of others by what it taught."""

import re
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ember.inference.inputs.categories import coded, holds_words, listed

__all__ = ["check_columns", "check_complete", "matrix", "specification"]


NEEDED = "a formula needs formulaic; install it with: pip install 'pyro-ember[formula]'"
UNKNOWN = re.compile(r"NameError: (?:`([^`]+)` is not present|name '([^']+)' is not defined)")
MARKS = re.compile(r"\x1b\[[0-9;]*m|[⧛⧚]")  # by which formulaic shows where an error is


def specification(terms: str, table: pd.DataFrame) -> Any:
    """What formulaic has learnt of some terms from a table."""
    return _materialised(terms, table).model_spec


def matrix(spec: Any, table: pd.DataFrame, gaps: bool = False) -> pd.DataFrame:
    """The columns of a specification for the rows of a table.

    Raises:
        ValueError: If entries are missing (unless there may be gaps), or a category is not known.
    """
    check_columns(sorted(map(str, spec.required_variables)), table, str(spec.formula))
    for name, (_, state) in spec.encoder_state.items():
        if name in table and (known := state.get("categories")) is not None:
            coded(table[name], tuple(map(str, known)))
    if not gaps:
        needed = sorted(map(str, spec.required_variables))
        check_complete(needed, table, "which covariates cannot have")
    found = _materialised(spec, table)
    return pd.DataFrame(
        np.asarray(found, dtype="float64").reshape(len(table), -1),
        columns=list(map(str, spec.column_names)),
        index=table.index,
    )


def _materialised(terms: Any, table: pd.DataFrame) -> Any:
    """The model matrix of terms, or of a specification, a row for each of the table."""
    formulaic, table = _formulaic(), _with_categories(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", formulaic.errors.DataMismatchWarning)
        try:
            return formulaic.model_matrix(terms, table, context=None, na_action="ignore")
        except formulaic.errors.FormulaicError as error:
            raise ValueError(f"formula '{_shown(terms)}': {_sentence(error, table)}") from error
        except formulaic.errors.DataMismatchWarning as error:
            unknown = re.search(r"\{.*\}", str(error))
            raise ValueError(
                f"formula '{_shown(terms)}': the rows have categories that the data of the fit did "
                f"not{f': {unknown[0]}' if unknown else ''}."
            ) from error


def _with_categories(table: pd.DataFrame) -> pd.DataFrame:
    """The table with words as pandas' categories, which every formulaic knows as such."""
    words = [name for name in table.columns if holds_words(table[name])]
    return table.astype(dict.fromkeys(words, "category"))


def _formulaic() -> Any:
    try:
        import formulaic
        import formulaic.errors
    except ImportError as error:
        raise ImportError(NEEDED) from error
    return formulaic


def _shown(terms: Any) -> str:
    return terms if isinstance(terms, str) else str(terms.formula)


def _sentence(error: Exception, table: pd.DataFrame) -> str:
    first = MARKS.sub("", str(error)).strip().splitlines()[0].rstrip(".")
    unknown = UNKNOWN.search(first)
    if unknown:
        return (
            f"'{unknown[1] or unknown[2]}' is neither a column nor a function that formulas have; "
            f"the columns are {listed(table.columns)}."
        )
    return f"{first}."


def check_columns(names: Iterable[str], table: pd.DataFrame, text: str) -> None:
    """Refuses a table without some columns that a formula reads."""
    absent = [name for name in names if name not in table.columns]
    if absent:
        raise ValueError(
            f"formula '{text}' reads {listed(absent)}, which the table does not have; its columns "
            f"are {listed(table.columns)}."
        )


def check_complete(names: Iterable[str], table: pd.DataFrame, why: str) -> None:
    """Refuses columns with missing entries, saying why they may have none."""
    for name in names:
        gone = int(table[name].isna().sum())
        if gone:
            raise ValueError(
                f"column '{name}' lacks {gone} of its {len(table)} entries, {why}; drop these rows "
                f"(table.dropna(subset=['{name}'])), or fill them in."
            )
