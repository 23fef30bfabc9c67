"""Words among a model's arguments, as codes: for a fit, and by the same labels for new rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ember.inference.inputs.categories import (
    LABELS,
    Labels,
    coded,
    coded_frame,
    holds_words,
    no_words_before,
)

__all__ = ["noted", "recoded"]


def noted(value: Any, where: str, is_data: bool, labels: dict[str, dict[str, Labels]]) -> Any:
    """An argument with codes in the place of words, whose labels are noted."""
    value = _as_series(value)
    if isinstance(value, pd.DataFrame):
        value = coded_frame(value)
    elif isinstance(value, pd.Series) and holds_words(value):
        value = _whole(coded(_named(value, where))[0], is_data)
    elif type(value) is dict:
        return {key: noted(part, f"{where}.{key}", is_data, labels) for key, part in value.items()}
    if isinstance(value, (pd.DataFrame, pd.Series)) and value.attrs.get(LABELS):
        labels[where] = dict(value.attrs[LABELS])
    return value


def recoded(value: Any, where: str, grows: bool, known: Mapping[str, Mapping[str, Labels]]) -> Any:
    """An argument for new rows, its words coded by the labels of the fit."""
    value = _as_series(value)
    if isinstance(value, pd.DataFrame):
        return coded_frame(value, known.get(where, {}))
    if isinstance(value, pd.Series) and holds_words(value):
        labels = next(iter(known.get(where, {}).values()), None)
        if labels is None:
            raise no_words_before(_named(value, where))
        return _whole(coded(_named(value, where), labels, grows)[0], not grows)
    if type(value) is dict:
        return {key: recoded(part, f"{where}.{key}", grows, known) for key, part in value.items()}
    return value


def _as_series(value: Any) -> Any:
    """Categories and arrays of words as a series of them."""
    is_words = isinstance(value, np.ndarray) and value.dtype.kind in "UO" and value.ndim == 1
    return pd.Series(value) if is_words or isinstance(value, pd.Categorical) else value


def _named(column: pd.Series, where: str) -> pd.Series:
    return column.rename(where.rpartition(".")[2]) if column.name is None else column


def _whole(codes: pd.Series, is_data: bool) -> pd.Series:
    """Codes that other sites are indexed by as whole numbers, if none is missing."""
    if is_data or codes.isna().any():
        return codes
    whole = codes.astype("int64")
    whole.attrs = dict(codes.attrs)
    return whole
