"""Words as codes: columns of categories become numbers 0, 1, ... whose labels go with them.

Codes of a table stand in its ``attrs["labels"]``, by column; what reads tables for their names
finds the labels there.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

__all__ = [
    "LABELS",
    "Labels",
    "coded",
    "coded_frame",
    "holds_words",
    "labels_of",
    "listed",
    "no_words_before",
    "with_words",
]


LABELS = "labels"  # the key among a table's attributes
Labels = tuple[str, ...]
SHOWN = 12  # names that a message lists


def holds_words(column: pd.Series) -> bool:
    """Whether a column holds words, or categories of any kind, rather than numbers."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return True
    words = ("string", "boolean")  # yes and no beside what is missing is an object to pandas
    return column.dtype.kind == "O" and pd.api.types.infer_dtype(column, skipna=True) in words


def labels_of(column: pd.Series) -> Labels:
    """The labels of a column: categories in their order, other values sorted."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return tuple(map(_label, column.cat.remove_unused_categories().cat.categories))
    known = column.dropna().unique()
    try:
        ordered = sorted(known)
    except TypeError:  # of several kinds
        ordered = sorted(known, key=str)
    return tuple(dict.fromkeys(map(_label, ordered)))


def coded(
    column: pd.Series, labels: Labels | None = None, grows: bool = False
) -> tuple[pd.Series, Labels]:
    """A column as codes of its labels, and the labels.

    Args:
        column: Values of any kind; what is missing becomes NaN.
        labels: Those of the codes that are known; found unless given.
        grows: Whether values without a label get new codes behind those known.

    Raises:
        ValueError: If a value has no label.
    """
    found = labels_of(column)
    if labels is None:
        labels = found
    new = tuple(label for label in found if label not in labels)
    if new and not grows:
        raise ValueError(
            f"column '{column.name}' has the label '{new[0]}', which the data of the fit did not; "
            f"its labels are {listed(labels)}."
        )
    labels = (*labels, *new)
    codes = {label: float(code) for code, label in enumerate(labels)}
    missing = column.isna().to_numpy()
    values = [
        np.nan if gone else codes[_label(value)]
        for value, gone in zip(column, missing, strict=True)
    ]
    series = pd.Series(values, index=column.index, name=column.name, dtype="float64")
    series.attrs[LABELS] = {str(column.name): labels}
    return series, labels


def coded_frame(frame: pd.DataFrame, known: Mapping[str, Labels] | None = None) -> pd.DataFrame:
    """A table whose columns of words are codes; its attributes hold the labels.

    Args:
        frame: A table with or without words.
        known: The labels of columns, from the table of the fit.

    Raises:
        ValueError: If a value has no label among those known.
    """
    if not frame.columns.is_unique:
        return frame
    labels: dict[str, Labels] = dict(frame.attrs.get(LABELS, {}))
    columns = {}
    for name in frame.columns:
        column = frame[name]
        if holds_words(column):
            if known is not None and str(name) not in known:
                raise no_words_before(column)
            columns[name], labels[str(name)] = coded(column, (known or {}).get(str(name)))
        elif column.dtype.kind == "b":
            labels[str(name)] = ("False", "True")
    if not labels:
        return frame
    made = pd.DataFrame({name: columns.get(name, frame[name]) for name in frame.columns})
    made.attrs = {**frame.attrs, LABELS: labels}
    return made


def with_words(table: pd.DataFrame) -> pd.DataFrame:
    """A table with categories in the place of codes whose labels its attributes hold."""
    made = table.copy(deep=False)
    made.attrs = {}
    for name, labels in table.attrs.get(LABELS, {}).items():
        if name in table and table[name].dtype.kind == "f":
            words = dict(enumerate(labels))
            made[name] = pd.Categorical(table[name].map(words), categories=list(labels))
    return made


def no_words_before(column: pd.Series) -> ValueError:
    """What is to be said of words where the fit had numbers."""
    return ValueError(
        f"column '{column.name}' holds words, and the data of the fit had numbers there."
    )


def listed(names: Iterable[object]) -> str:
    """Names in quotation marks, the first of many."""
    every = [f"'{name}'" for name in names]
    return ", ".join(every[:SHOWN]) + (", ..." if len(every) > SHOWN else "")


def _label(value: object) -> str:
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)
