"""Saved fits, for the command: what is kept beside them, and new tables read as the old were.

The file of a fit says what its model is called. A ready model is found by that name; code of the
user's own is run only if the user names it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ember.inference.command_line.model_data import ModelData, UsageError
from ember.inference.fit import Fit
from ember.inference.inputs.tables import select_columns
from ember.inference.storage.fit_file import read_notes, write_fit

__all__ = ["TableNotes", "notes_of", "save"]


@dataclass(frozen=True)
class TableNotes:
    """How the data of a fit were taken from a table.

    Attributes:
        model: The name of the model's function.
        columns: The columns that were used; None if that is not known.
        response: The response of a regression.
        labels: The labels behind the codes of columns of words.
        single: Whether the model takes one column as a vector.
    """

    model: str
    columns: Sequence[str] | None = None
    response: str | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    single: bool = False

    def with_columns_of(self, fit: Fit) -> "TableNotes":
        """The notes, their columns those of the data of a fit that was saved without notes."""
        names = fit.argument_names()
        known = fit.columns.get(names[0]) if names else None
        return self if self.columns else dataclasses.replace(self, columns=known)

    def arguments(
        self, raw: pd.DataFrame, path: str, say: Callable[[str], object]
    ) -> tuple[object, ...]:
        """What the model is called with for the rows of another table.

        Raises:
            ValueError: If columns are missing or hold no numbers.
            UsageError: If a column has a label that the fit does not know.
        """
        columns = self.columns
        if columns is not None and self.response is not None:
            columns = [*columns, self.response]
        coded = raw.assign(**{n: self._coded(raw, n) for n in self.labels if n in raw.columns})
        table = select_columns(coded, path, columns, say)
        if self.response is not None:
            return table.pop(self.response), table
        return (table.iloc[:, 0],) if self.single else (table,)

    def of_no_table(self) -> ModelData:
        """The names and labels alone, for reports."""
        return ModelData(pd.DataFrame(), tuple(self.columns or ()), (), {}, self.labels, ())

    def _coded(self, raw: pd.DataFrame, name: str) -> list[float]:
        codes = {label: float(code) for code, label in enumerate(self.labels[name])}
        unknown = sorted({str(v) for v in raw[name].dropna()} - codes.keys())
        if unknown:
            raise UsageError(
                f"column '{name}' has the label '{unknown[0]}', which the data of the fit did not; "
                f"its labels are {', '.join(codes)}."
            )
        return [math.nan if pd.isna(value) else codes[str(value)] for value in raw[name]]


def save(fit: Fit, data: ModelData, path: str, with_data: bool) -> None:
    """Writes a fit with notes of how its data were taken from their table."""
    notes = {
        "columns": list(data.columns),
        "response": data.response,
        "labels": {name: list(levels) for name, levels in data.labels.items()},
        "single": isinstance(data.args[0], pd.Series) and data.response is None,
    }
    write_fit(fit, path, with_data, notes)


def notes_of(path: str) -> TableNotes:
    """The notes in a file; of one that was not written by the command the model's name alone."""
    model, notes = read_notes(path)
    known: dict[str, Any] = notes if isinstance(notes, dict) else {}
    return TableNotes(model, **known)
