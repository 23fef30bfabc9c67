"""Reads a table of numbers from a CSV or Parquet file, and says what is wrong with it."""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["air_quality", "old_faithful", "read_table"]


def old_faithful() -> pd.DataFrame:
    """Eruptions of the Old Faithful geyser (272 rows): their duration, and the wait, in minutes.

    Reference: Azzalini & Bowman (1990), *A look at some data on the Old Faithful geyser*, Applied
    Statistics 39, 357-365.

    Example:
        >>> old_faithful().shape
        (272, 2)
    """
    return _shipped("faithful.csv")


def air_quality() -> pd.DataFrame:
    """Air quality in New York on 153 days of May to September 1973, with gaps (NaN).

    Ozone (parts per billion), solar radiation (langley), wind (miles per hour) and temperature
    (degrees Fahrenheit).

    Reference: Chambers, Cleveland, Kleiner & Tukey (1983), *Graphical methods for data analysis*,
    Wadsworth.

    Example:
        >>> air_quality().isna().sum().to_dict()
        {'Ozone': 37, 'Solar.R': 7, 'Wind': 0, 'Temp': 0}
    """
    return _shipped("airquality.csv")


def _shipped(name: str) -> pd.DataFrame:
    source = resources.files("ember.inference") / "data" / name
    with source.open(encoding="utf-8") as file:
        return pd.read_csv(file).astype("float64")


def read_table(
    path: str | Path, columns: Sequence[str] | None = None, say: Callable[[str], Any] | None = None
) -> pd.DataFrame:
    """The numeric columns of a file, as float64, missing values as NaN.

    Args:
        path: A file that ends in ``.csv`` (the first line holds the names of the columns) or
            ``.parquet``.
        columns: The columns to take; all numeric ones unless given.
        say: Told which columns were left out because they hold no numbers.

    Raises:
        ValueError: If the file cannot be read, a column is missing or holds no numbers, or values
            are infinite. The message is one sentence that names the file or columns.
    """
    table = _read(Path(path))
    if columns is not None:
        absent = [name for name in columns if name not in table.columns]
        if absent:
            raise ValueError(
                f"{path} has no column {_list(absent)}; its columns are {_list(table.columns)}."
            )
        table = table[list(dict.fromkeys(columns))]
    other = [name for name in table.columns if table[name].dtype.kind not in "biuf"]
    if other and columns is not None:
        raise ValueError(
            f"column {_list(other)} of {path} does not hold numbers only; leave it out of the "
            "columns, or encode it as numbers."
        )
    table = table.drop(columns=other)
    if table.empty:
        raise ValueError(f"{path} holds no rows of numbers; give a table with numeric columns.")
    if other and say is not None:
        say(f"left out (not numeric): {_list(other)}")
    # Nullable integers of Parquet files hold a missing value that only a float can stand for.
    table = pd.DataFrame(
        {str(name): table[name].to_numpy(dtype="float64", na_value=float("nan")) for name in table}
    )
    infinite = table.columns[table.map(abs).eq(float("inf")).any()]
    if len(infinite):
        raise ValueError(
            f"{path} has infinite values in column {_list(infinite)}; remove those rows, leave "
            "them empty if the values are missing, or choose other columns."
        )
    return table


def _read(path: Path) -> pd.DataFrame:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise ValueError(
            f"{path} is neither a .csv nor a .parquet file; convert it to one of them."
        )
    try:
        if suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, skipinitialspace=True)
    except ImportError as error:
        raise ValueError(
            "reading Parquet files needs pyarrow; install it with: pip install pyarrow"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}.") from error
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty.") from error
    except (OSError, UnicodeError, ValueError) as error:
        # pandas' own errors of parsing are ValueErrors; their first line says what is wrong.
        raise ValueError(f"{path} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."


def _list(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
