"""Tables: those that ship, and what a model can take of a CSV or Parquet file."""

import math
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from ember.inference.inputs.delimited import read_delimited
from ember.inference.inputs.numerals import is_number

__all__ = [
    "air_quality",
    "check_path",
    "law_school_test",
    "old_faithful",
    "read_raw",
    "read_table",
    "select_columns",
]


TEXT = (".csv", ".tsv")


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


def law_school_test(section: int = 6) -> pd.DataFrame:
    """Answers of 1000 people to five questions of the Law School Admission Test, right (1) or not.

    Args:
        section: 6, figure classification, or 7, debate.

    Raises:
        ValueError: If the section is neither.

    Reference: Bock & Lieberman (1970), *Fitting a response model for n dichotomously scored items*,
    Psychometrika 35, 179-197.

    Example:
        >>> law_school_test().mean().to_dict()
        {'Q1': 0.924, 'Q2': 0.709, 'Q3': 0.553, 'Q4': 0.763, 'Q5': 0.87}
    """
    if section not in (6, 7):
        raise ValueError(f"section={section!r} is not shipped; choose 6 or 7.")
    patterns = _shipped("lsat.csv")
    times = patterns[f"section{section}"].astype(int)
    answers = patterns[["Q1", "Q2", "Q3", "Q4", "Q5"]]
    return answers.loc[answers.index.repeat(times)].reset_index(drop=True)


def _shipped(name: str) -> pd.DataFrame:
    source = resources.files("ember.inference.inputs") / "data" / name
    with source.open(encoding="utf-8") as file:
        return pd.read_csv(file).astype("float64")


def read_table(
    path: str | Path,
    columns: Sequence[str] | None = None,
    say: Callable[[str], object] | None = None,
    *,
    sep: str | None = None,
    decimal: str | None = None,
    header: bool | None = None,
    categories: bool = False,
) -> pd.DataFrame:
    """The columns of a file as float64: numbers, true and false as 1 and 0, missing values as NaN.

    Of a text file the encoding, the delimiter, the decimal mark (and with it the mark between
    thousands) and whether the first line holds names are found; each can be given. Spellings such
    as ``NA``, ``null`` or ``-`` are missing values.

    Args:
        path: A file that ends in ``.csv``, ``.tsv`` or ``.parquet``.
        columns: The columns to take; all that hold numbers unless given.
        say: Told which columns were left out, and how a file without names was read.
        sep: The delimiter; "tab" and "space" are understood.
        decimal: The decimal mark, "." or ",".
        header: Whether the first line holds names.
        categories: Whether columns of words are taken too, as codes 0, 1, ... of their labels in
            alphabetical order, which ``.attrs["labels"]`` of the result holds by column.

    Raises:
        ValueError: If the file cannot be read, a column is missing or holds no numbers, or values
            are infinite. The message is one sentence that names the file or columns.
    """
    say = say or (lambda text: None)
    table = read_raw(path, sep, decimal, header, say)
    return select_columns(table, path, columns, say, categories)


def select_columns(
    table: pd.DataFrame,
    path: str | Path,
    columns: Sequence[str] | None,
    say: Callable[[str], object],
    categories: bool = False,
) -> pd.DataFrame:
    """The columns of a raw table that a model can take; see ``read_table``."""
    if columns is not None:
        absent = [name for name in columns if name not in table.columns]
        if absent:
            raise ValueError(
                f"{path} has no column {_list(absent)}; its columns are {_list(table.columns)}."
            )
        table = table[list(dict.fromkeys(columns))]
    other = [name for name in table.columns if table[name].dtype.kind not in "biuf"]
    labels: dict[str, tuple[str, ...]] = {}
    if categories:
        table, labels = _coded(table, other, columns is not None)
        other = [name for name in other if str(name) not in labels]
    elif columns is not None and other:
        raise ValueError(
            f"column {_list(other)} of {path} does not hold numbers only{_stray(table[other[0]])}; "
            "leave it out of the columns, or encode it as numbers."
        )
    for name in other:
        _check_no_numbers(table[name], path)
    table = table.drop(columns=other)
    hollow = [name for name in table if table[name].isna().all()]
    if hollow and columns is not None and len(table):
        raise ValueError(f"column {_list(hollow)} of {path} holds no values; leave it out.")
    table = table.drop(columns=hollow)
    if table.empty:
        raise ValueError(f"{path} holds no rows of numbers; give a table with numeric columns.")
    if other:
        say(f"left out (not numeric): {_list(other)}")
    if hollow:
        say(f"left out (no values): {_list(hollow)}")
    # Nullable integers of Parquet files hold a missing value that only a float can stand for.
    table = pd.DataFrame(
        {str(name): table[name].to_numpy(dtype="float64", na_value=float("nan")) for name in table}
    )
    _check_values(table, path)
    table.attrs["labels"] = labels
    return table


def _coded(
    table: pd.DataFrame, words: Sequence[str], named: bool
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """Columns of words as codes of their labels, which are returned too.

    A column in which most rows have a label of their own is a name and no category: it stays as
    it is unless it was asked for by name.
    """
    table, labels = table.copy(), {}
    for name in words:
        known = table[name].dropna()
        levels = sorted(map(str, known.unique()))
        if not levels or not (named or 2 * len(levels) <= len(known)):
            continue
        codes = {label: float(code) for code, label in enumerate(levels)}
        table[name] = [math.nan if pd.isna(v) else codes[str(v)] for v in table[name]]
        labels[str(name)] = tuple(levels)
    return table, labels


def _check_no_numbers(column: pd.Series, path: str | Path) -> None:
    """Refuses to leave out a column of numbers because of a few words among them."""
    known = [str(value) for value in column.dropna()]
    if 2 * sum(map(is_number, known)) > len(known):
        raise ValueError(
            f"column '{column.name}' of {path} does not hold numbers only{_stray(column)}; mend "
            "it, leave the value empty if it is missing, or choose the columns to use."
        )


def _stray(column: pd.Series) -> str:
    """The first word in a column of numbers, or number with another mark, and where it stands."""
    cells = [(row, str(v)) for row, v in enumerate(column, start=1) if not pd.isna(v)]
    odd = [(row, v) for row, v in cells if not is_number(v)]
    row, value = (odd or [(row, v) for row, v in cells if "," in v] or cells)[0]
    return f": it has {value[:40]!r} in row {row}"


def _check_values(table: pd.DataFrame, path: str | Path) -> None:
    infinite = table.columns[table.map(abs).eq(float("inf")).any()]
    if len(infinite):
        raise ValueError(
            f"{path} has infinite values in column {_list(infinite)}; remove those rows, leave "
            "them empty if the values are missing, or choose other columns."
        )


def check_path(path: str | Path) -> Path:
    """The path of a table, once it is known to be one.

    Raises:
        ValueError: If there is no such file, or it is of another kind.
    """
    path = Path(path)
    if path.suffix.lower() not in (*TEXT, ".parquet"):
        raise ValueError(
            f"{path} is neither a .csv nor a .parquet file; convert it to one of them."
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file.")
    if not path.exists():
        raise ValueError(f"there is no file {path}.")
    return path


def read_raw(
    path: str | Path,
    sep: str | None,
    decimal: str | None,
    header: bool | None,
    say: Callable[[str], object],
) -> pd.DataFrame:
    """All columns of a file, as they are: numbers as float64 (of text files), others as text."""
    path = check_path(path)
    if path.suffix.lower() in TEXT:
        try:
            return read_delimited(path, sep, decimal, header, say)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise ValueError(
            "reading Parquet files needs pyarrow; install it with: pip install pyarrow"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."


def _list(names: Iterable[object]) -> str:
    return ", ".join(f"'{name}'" for name in names)
