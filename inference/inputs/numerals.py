"""Numbers as people write them: decimal points and commas, thousands in groups, missing values."""

import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

__all__ = ["decimal_mark", "flags", "is_missing", "is_number", "numbers"]


MISSING = frozenset(("", "na", "n/a", "nan", "-nan", "null", "<na>", "#n/a", "?"))


# What stands for a missing number, but may well be a word among words.
NO_NUMBER = MISSING | frozenset(
    ("none", "nil", "missing", ".", "-", "--", "#na", "#null!", "#div/0!", "#value!", "#num!")
)


FLAGS = {"true": 1.0, "false": 0.0}
SPACES = " \u00a0\u202f'’"  # between thousands, besides the mark that is not the decimal one
INFINITE = ("inf", "infinity")


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell.casefold() in MISSING


def is_number(cell: str) -> bool:
    """Whether a cell is a number with one decimal mark or the other."""
    return any(_pattern(mark).fullmatch(cell) is not None for mark in ".,")


def flags(cells: Sequence[str]) -> list[float] | None:
    """A column of true and false as ones and zeros (NaN: missing), or None if it is none."""
    values = [FLAGS.get(c.casefold(), math.nan if is_missing(c) else None) for c in cells]
    return None if None in values else [v for v in values if v is not None]


def numbers(cells: Sequence[str], decimal: str) -> list[float] | None:
    """A column as numbers (NaN: missing), or None if a cell is neither."""
    values = []
    for cell in cells:
        value = _number(cell, decimal)
        if value is None:
            return None
        values.append(value)
    return values


def _number(cell: str, decimal: str) -> float | None:
    if decimal == "." and "_" not in cell:  # which Python would allow
        try:
            return float(cell)  # rounds correctly, and is fast
        except ValueError:
            pass
    if cell.casefold() in NO_NUMBER:
        return math.nan
    cell = cell.replace("\u2212", "-")
    if cell.lstrip("+-").casefold() in INFINITE:
        return float(cell)
    if _pattern(decimal).fullmatch(cell) is None:
        return None
    for group in {*SPACES, ".,".replace(decimal, "")}:
        cell = cell.replace(group, "")
    return float(cell.replace(decimal, "."))


@cache
def _pattern(decimal: str) -> re.Pattern[str]:
    """A number with this decimal mark; its thousands may be grouped."""
    mark, groups = re.escape(decimal), re.escape(".,".replace(decimal, "") + SPACES)
    whole = rf"(?:[1-9]\d{{0,2}}(?:(?P<group>[{groups}])\d{{3}})(?:(?P=group)\d{{3}})*|\d+)"
    return re.compile(rf"[+\-\u2212]?(?:{whole}(?:{mark}\d*)?|{mark}\d+)(?:[eE][+-]?\d+)?")


def decimal_mark(columns: Iterable[Sequence[str]], sep: str, path: Path) -> str:
    """The decimal mark of a file, by all its numbers.

    ``1,5`` and ``1.234,5`` show that it is the comma, ``1.5`` and ``1,234.5`` that it is the point.
    ``1,234`` alone may be either: thousands where commas stand between fields, else a fraction.

    Raises:
        ValueError: If numbers show both, or nothing tells which of two readings is meant.
    """
    shown: dict[str, str] = {}
    unclear: dict[str, str] = {}
    for cells in columns:
        marked = [cell for cell in cells if "," in cell or "." in cell]
        # A column with words in it does not tell the decimal mark.
        if not marked or not all(is_number(c) or c.casefold() in NO_NUMBER for c in marked):
            continue
        for cell in marked:
            readings = [mark for mark in ".," if _pattern(mark).fullmatch(cell)]
            if len(readings) == 1:
                shown.setdefault(readings[0], cell)
            elif readings:
                unclear.setdefault("," if "," in cell else ".", cell)
    if len(shown) == 2 or (not shown and len(unclear) == 2):
        examples = shown if len(shown) == 2 else unclear
        raise ValueError(
            f"{path} holds {examples['.']!r} and {examples[',']!r}, which have different decimal "
            "marks; say which is meant (--decimal)."
        )
    if shown:
        return next(iter(shown))
    return "," if "," in unclear and sep != "," else "."
