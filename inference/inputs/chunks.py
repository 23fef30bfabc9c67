"""Data in pieces: the chunks of an array or file, and what each piece is to a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from torch import Tensor

from ember.inference.inputs.arguments import Arguments, prepare
from ember.inference.inputs.options import check_count

__all__ = ["Chunk", "Chunks", "arguments_of", "check_loader", "chunks", "given_by"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Chunk:
    """A piece of a file or array that is read when it is asked for; of a file it pickles small.

    Attributes:
        source: The path of a ``.npy`` or Parquet file, or what holds the rows.
        start: The first row; of a Parquet file the number of the row group.
        stop: The row after the last.
        columns: The columns of a Parquet file, in their order; a single name gives numbers
            ``(N,)``; all of them unless given.
    """

    source: str | Array | Tensor | pd.DataFrame
    start: int
    stop: int
    columns: tuple[str, ...] | str | None = None

    def load(self) -> Any:
        """Its rows: an array, or a tensor or table if the source is one."""
        if not isinstance(self.source, str):
            rows = self.source.iloc if isinstance(self.source, pd.DataFrame) else self.source
            return rows[self.start : self.stop]
        if self.source.endswith(".npy"):
            return np.array(np.load(self.source, mmap_mode="r")[self.start : self.stop])
        names = [self.columns] if isinstance(self.columns, str) else self.columns
        table = _parquet(self.source).read_row_group(
            self.start, columns=None if names is None else list(names)
        )
        frame = table.to_pandas()
        return frame[self.columns] if isinstance(self.columns, str) else frame

    def without_rows(self) -> pd.DataFrame | None:
        """Its table's columns alone, of which no row is read; None if it is none."""
        if isinstance(self.source, pd.DataFrame):
            return self.source.iloc[:0]
        is_table = isinstance(self.source, str) and not self.source.endswith(".npy")
        if not is_table or isinstance(self.columns, str):
            return None
        table = _parquet(str(self.source)).schema_arrow.empty_table()
        frame: pd.DataFrame = table.to_pandas()
        return frame if self.columns is None else frame[list(self.columns)]


class Chunks(Sequence[Chunk]):
    """The chunks of one source, in their order; see ``chunks``."""

    def __init__(self, pieces: Sequence[Chunk]) -> None:
        self._pieces = tuple(pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, place: Any) -> Any:
        found = self._pieces[place]
        return Chunks(found) if isinstance(place, slice) else found

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._pieces)


def chunks(
    source: str | Path | Array | Tensor | pd.DataFrame,
    rows: int = 100_000,
    columns: Sequence[str] | str | None = None,
) -> Chunks:
    """The rows of an array or file in pieces, for ``EM.fit_batches`` and ``EM.fit_online``.

    Nothing is read before it is asked for: a ``.npy`` file is mapped into memory, of a Parquet
    file each row group is a piece. The result is a sequence, so that ``pieces[rank::world]`` is a
    share of it, and its members pickle small, so that workers read the rows themselves.

    Args:
        source: The path of a ``.npy`` or ``.parquet`` file, or rows that are in memory.
        rows: How many rows a piece has; a Parquet file has its own row groups.
        columns: The columns of a Parquet file or a data frame to read; a single name gives numbers
            ``(N,)``.

    Raises:
        TypeError: If ``rows`` is not whole.
        ValueError: If the file is of another kind, or cannot be read, or lacks a column; if there
            are no columns by name.
        ImportError: If the file is Parquet and ``pyarrow`` is not installed.

    Example:
        >>> pieces = chunks(np.zeros((250, 2)), rows=100)
        >>> [len(piece.load()) for piece in pieces]
        [100, 100, 50]
    """
    check_count("rows", rows)
    if isinstance(source, (str, Path)):
        path = str(source)
        if not Path(path).is_file():
            raise ValueError(f"there is no file {path}.")
        if path.endswith((".parquet", ".pq")):
            given = columns if columns is None or isinstance(columns, str) else tuple(columns)
            file = _parquet(path)
            _check_columns(path, file.schema_arrow.names, columns)
            groups = range(file.metadata.num_row_groups)
            return Chunks([Chunk(path, group, group + 1, given) for group in groups])
        if not path.endswith(".npy"):
            raise ValueError(f"{path} is neither a .npy nor a .parquet file.")
        _check_columns(path, None, columns)
        try:
            count = len(np.load(path, mmap_mode="r"))
        except (ValueError, OSError, TypeError) as error:
            raise ValueError(f"{path} is no .npy file that can be read: {error}.") from error
        return Chunks([Chunk(path, i, min(i + rows, count)) for i in range(0, count, rows)])
    names = list(source.columns) if isinstance(source, pd.DataFrame) else None
    _check_columns("the array" if names is None else "the table", names, columns)
    if isinstance(source, pd.DataFrame) and columns is not None:
        rest = source[[columns] if isinstance(columns, str) else list(columns)]
        source = rest.to_numpy()[:, 0] if isinstance(columns, str) else rest
    count = len(source)
    return Chunks([Chunk(source, i, min(i + rows, count)) for i in range(0, count, rows)])


def _check_columns(
    where: str, known: Sequence[object] | None, columns: Sequence[str] | str | None
) -> None:
    """Refuses names of columns that are not there; None is known where columns have no names."""
    if columns is None:
        return
    if known is None:
        raise ValueError(f"{where} has no columns by name: take them of the array, not columns=.")
    missing = [n for n in ([columns] if isinstance(columns, str) else columns) if n not in known]
    if missing:
        names = ", ".join(map(repr, known))
        raise ValueError(f"{where} has no column {missing[0]!r}; it has {names}.")


def check_loader(loader: object) -> None:
    """Refuses what cannot be read pass by pass.

    Raises:
        TypeError: If it is no collection of pieces, or an iterator, which is read but once.
    """
    if isinstance(loader, (Tensor, np.ndarray, pd.DataFrame, Mapping, str)):
        raise TypeError(
            f"the loader is a {type(loader).__name__}, which is data and no collection of pieces; "
            "pass chunks(data, rows=...), a DataLoader or a list of pieces."
        )
    if not hasattr(loader, "__iter__"):
        raise TypeError(
            f"the loader is a {type(loader).__name__}, which cannot be iterated over; pass a "
            "DataLoader, chunks(...) or a list of pieces."
        )
    if isinstance(loader, Iterator):
        raise TypeError(
            "the loader is an iterator, which can be read only once, and a fit reads the data many "
            "times; pass something that can be read again, such as a DataLoader or a list."
        )


def arguments_of(item: object, options: Mapping[str, object]) -> Arguments:
    """What a piece is to the model: data, a tuple of arguments, or a dict of arguments by name.

    Args:
        item: The piece; what has ``load`` or ``to_pandas`` is read by it.
        options: The arguments that all pieces share.
    """
    return prepare(*given_by(item, options))


def given_by(
    item: object, options: Mapping[str, object]
) -> tuple[tuple[object, ...], Mapping[str, object]]:
    """The same as the user gave it: tables have the names of their columns."""
    if isinstance(item, Chunk):
        item = item.load()
    elif not isinstance(item, (Tensor, pd.DataFrame)) and hasattr(item, "to_pandas"):
        item = cast(Any, item).to_pandas()
    if isinstance(item, Mapping):
        own = {str(name): value for name, value in item.items()}
        shared = {name: value for name, value in options.items() if name not in own}
        return (), {**own, **shared}  # rows come first
    if isinstance(item, (tuple, list)) and not all(isinstance(v, (int, float)) for v in item):
        return tuple(item), options
    return (item,), options


def _parquet(path: str) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files are read by pyarrow: pip install 'pyro-ember[parquet]'."
        ) from error
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow's own kinds, and the system's
        raise ValueError(
            f"{path} cannot be read as Parquet, perhaps because it was cut short: {error}."
        ) from error
