"""Reads delimited text in whatever dialect it was written: encoding, delimiter, marks, header.

Neither ``csv.Sniffer`` nor ``pandas.read_csv`` will do for that: where numbers have decimal commas
both take the comma for a delimiter (and pandas the first field for row names), without a word.
Here the delimiter is the one with which every line has as many fields, and most of them are
numbers; which mark is the decimal one is judged by all numbers of the file
(``inputs/numerals.py``).
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from ember.inference.inputs.numerals import decimal_mark, flags, is_missing, is_number, numbers

__all__ = ["WHITESPACE", "read_delimited"]


WHITESPACE = " "
SEPARATORS = ("\t", ";", "|", ",", WHITESPACE)
WORDS = {"tab": "\t", "\\t": "\t", "space": WHITESPACE, "\\s+": WHITESPACE}
SAMPLE = 200_000  # characters that the delimiter is judged by
Rows = list[list[str]]


def read_delimited(
    path: Path,
    sep: str | None = None,
    decimal: str | None = None,
    header: bool | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> pd.DataFrame:
    """All columns of a text file: numbers as float64, everything else as text (None: missing).

    Args:
        path: The file.
        sep: The delimiter; found unless given. "tab" and "space" (any white space) are words.
        decimal: "." or ","; found unless given.
        header: Whether the first line holds names; found unless given.
        say: Told what was decided where another reading would have been possible.

    Raises:
        ValueError: If the file is empty or no table, or its numbers can be read in two ways.
    """
    text = _decoded(path)
    sep = _check_sep(sep)
    if decimal not in (None, ".", ","):
        raise ValueError(f"the decimal mark is '.' or ',', not {decimal!r}.")
    if marked := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):  # a line that Excel understands
        sep, text = sep or marked[1], text[marked.end() :]
    if sep is not None and sep not in text and (other := _separator(text)) in text:
        raise ValueError(
            f"{path} has {sep!r} nowhere between its fields; leave out --sep, or give {other!r}."
        )
    sep = sep or _separator(text)
    rows = _rows(text, sep, path)
    if not rows:
        raise ValueError(f"{path} is empty.")
    names, body = _names_and_body(rows, path, sep, header, say)
    columns = dict(zip(names, map(list, zip(*body, strict=True)), strict=True))
    mark = decimal or decimal_mark(list(columns.values()), sep, path)
    table = pd.DataFrame({name: _column(cells, mark) for name, cells in columns.items()})
    empty = [name for name in table if str(name).startswith("\0") and table[name].isna().all()]
    table = table.drop(columns=empty)
    return table.rename(columns={n: str(n).lstrip("\0") for n in table})


# -- from bytes to fields -----------------------------------------------------------------------
def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    if b"\0" in raw:
        raise ValueError(f"{path} cannot be read: it holds binary data, not text.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")  # as spreadsheets in the West write it


def _check_sep(sep: str | None) -> str | None:
    sep = WORDS.get(sep, sep) if sep is not None else None
    if sep is not None and (len(sep) != 1 or sep in '"\r\n' or sep.isalnum()):
        raise ValueError(
            f"the delimiter is one character such as ',' or ';', or the word tab or space, not "
            f"{sep!r}."
        )
    return sep


def _fields(text: str, sep: str) -> list[tuple[int, list[str]]]:
    """The fields of every line that is not blank, with its number."""
    if sep == WHITESPACE:
        text = "\n".join(line.replace("\t", " ").strip() for line in text.splitlines())
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=sep, skipinitialspace=True, strict=False
    )
    return [
        (reader.line_num, [field.strip() for field in fields])
        for fields in reader
        if any(field.strip() for field in fields)
    ]


def _rows(text: str, sep: str, path: Path) -> Rows:
    """The fields of every line; all lines but the first have as many."""
    try:
        numbered = _fields(text, sep)
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    rows = [fields for _, fields in numbered]
    width = Counter(len(fields) for fields in rows[1:] or rows).most_common(1)[0][0] if rows else 0
    for place, (line, fields) in enumerate(numbered):
        if len(fields) != width and not (place == 0 and len(fields) == width - 1):
            raise ValueError(
                f"{path} cannot be read: line {line} has {len(fields)} fields where others have "
                f"{width}; mend it, or say what stands between the fields (--sep)."
            )
    return rows


def _separator(text: str) -> str:
    """The delimiter with which all lines have as many fields, most of them numbers."""
    sample = text[:SAMPLE]
    if len(text) > SAMPLE:
        sample = sample[: sample.rfind("\n")]
    best, score = "", (False, 0.0, 0.0)
    for sep in SEPARATORS:
        try:
            rows = [fields for _, fields in _fields(sample, sep)]
        except csv.Error:
            continue
        if not rows:
            continue
        first, body = rows[0], rows[1:] or rows
        width, lines = Counter(map(len, body)).most_common(1)[0]
        # A comma between a name and two fields below is a decimal one, and no row name.
        named = (width,) if sep == "," and width == 2 else (width, width - 1)
        consistent = lines == len(body) and len(first) in named
        cells = [field for fields in body for field in fields]
        share = sum(is_number(c) or is_missing(c) for c in cells) / len(cells)
        if width > 1 and (consistent, share, lines / len(body)) > score:
            best, score = sep, (consistent, share, lines / len(body))
    if not score[0] and _is_one_column(sample):
        return "\t"  # which does not occur
    return best or "\t"


def _is_one_column(sample: str) -> bool:
    """Whether every line is one number, which may have a decimal comma, below a single name."""
    first, *lines = [line.strip().strip('"') for line in sample.splitlines() if line.strip()] or [
        ""
    ]
    single = is_number(first) or not any(sep in first for sep in SEPARATORS[:-1])
    return single and bool(lines) and all(is_number(c) or is_missing(c) for c in lines)


# -- names ----------------------------------------------------------------------------------------
def _names_and_body(
    rows: Rows, path: Path, sep: str, header: bool | None, say: Callable[[str], object]
) -> tuple[list[str], Rows]:
    first, body = rows[0], rows[1:]
    if body and len(first) == len(body[0]) - 1:  # row names, as R writes them, or a last delimiter
        if all(not fields[-1] for fields in body):
            return _unique(first), [fields[:-1] for fields in body]
        say("left out (row names): the first column")
        return _unique(first), [fields[1:] for fields in body]
    has_names = _has_names(first, body) if header is None else header
    if not has_names:
        names = [f"x{i + 1}" for i in range(len(first))]
        if header is None:
            say(
                f"no names in the first line of {path}: it was read as data, and the columns are "
                f"called {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            )
        return names, rows
    if not body:
        raise ValueError(f"{path} holds no rows of numbers, only the names of columns.")
    if len(first) > 1 and not first[0] and all(first[1:]):  # an index, as pandas writes it
        say("left out (no name): the first column")
        return _unique(first[1:]), [fields[1:] for fields in body]
    return _unique(first), body


def _has_names(first: Sequence[str], body: Rows) -> bool:
    """Whether the first line holds names rather than data.

    Numbers are data, unless they count upwards (years, or what pandas calls columns without
    names) above others that are not whole. Words are data where they are found again below.
    """
    figures = [cell for cell in first if is_number(cell)]
    below = [set(column) for column in zip(*body, strict=True)] or [set() for _ in first]
    words = [i for i, cell in enumerate(first) if not is_number(cell) and not is_missing(cell)]
    known = bool(words) and all(first[i] in below[i] for i in words)
    counts = len(figures) >= (2 if words else 3) and all(
        figure.isdecimal() and int(figure) == int(figures[0]) + i
        for i, figure in enumerate(figures)
    )
    if counts and not known:
        whole = all(re.fullmatch(r"-?\d+", c) for cells in below for c in cells if is_number(c))
        return bool(words) or not whole
    return not known and not figures


def _unique(names: Sequence[str]) -> list[str]:
    """The names, a number after those that occur again; marked where there is none."""
    unique: list[str] = []
    for i, name in enumerate(names):
        candidate, count = name or f"\0x{i + 1}", 0
        while candidate in unique:
            count += 1
            candidate = f"{name}.{count}"
        unique.append(candidate)
    return unique


def _column(cells: Sequence[str], decimal: str) -> pd.Series:
    values = numbers(cells, decimal)
    if values is None:
        values = flags(cells)
    if values is not None:
        return pd.Series(values, dtype="float64")
    return pd.Series([None if is_missing(cell) else cell for cell in cells], dtype=object)
