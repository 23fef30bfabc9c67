"""The text of a formula with effects of groups: its response, fixed part and bars.

``y ~ x + (1 + x | g)`` is R's notation (lme4). ``formulaic`` reads the fixed part and what stands
before a bar; the bars themselves it does not know, and they are found here.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Bar", "FormulaText", "parse"]


NAME = re.compile(r"`([^`]+)`|([^\W\d]\w*(?:\.\w+)*)")
CLOSING = {"(": ")", "[": "]", "{": "}"}
QUOTES = "`'\""


class Bar(NamedTuple):
    """The effects of one grouping factor.

    Attributes:
        text: As it stands in the formula.
        terms: What stands before the bar.
        columns: The columns whose combinations are the groups.
        correlated: Whether the effects of a group are: false of a double bar.
    """

    text: str
    terms: str
    columns: tuple[str, ...]
    correlated: bool


class FormulaText(NamedTuple):
    """A formula in parts."""

    text: str
    response: str
    fixed: str
    bars: tuple[Bar, ...]


def parse(text: str) -> FormulaText:
    """The parts of ``response ~ fixed + (terms | group)``.

    A group may be a column, ``a:b`` (the combinations of two), or ``a/b`` (``a`` and ``a:b``).

    Raises:
        ValueError: If the text is no such formula.
    """
    parts = _split(text, "~")
    if len(parts) != 2 or not all(part.strip() for part in parts):
        raise ValueError(f"formula '{text}' is not of the form 'response ~ terms'.")
    response, right = (part.strip() for part in parts)
    fixed, bars, end = "", list[Bar](), 0
    for start, stop in _parentheses(right):
        body = right[start + 1 : stop - 1]
        sides = _split(body, "|")
        if len(sides) == 1:
            continue
        before, after = right[:start].rstrip(), right[stop:].lstrip()
        if (before and before[-1] != "+") or (after and after[0] not in "+-"):
            raise ValueError(
                f"formula '{text}': '({body})' is a term of its own; join it to others by '+'."
            )
        bars += _bars(text, body, sides)
        fixed, end = fixed + right[end:start].rstrip().removesuffix("+"), stop
    fixed = (fixed + right[end:]).strip().removeprefix("+").strip()
    if len(_split(fixed, "|")) > 1:
        raise ValueError(
            f"formula '{text}': effects of groups stand in parentheses, as in (1 | group)."
        )
    return FormulaText(text, response, fixed or "1", tuple(bars))


def _bars(text: str, body: str, sides: list[str]) -> Iterator[Bar]:
    """A bar, or one for each level of nested groups."""
    correlated = len(sides) == 2
    if not correlated and not (len(sides) == 3 and not sides[1].strip()):
        raise ValueError(f"formula '{text}': '({body})' has more than one bar.")
    columns: tuple[str, ...] = ()
    for level in _split(sides[-1], "/"):
        for name in _split(level, ":"):
            match = NAME.fullmatch(name.strip())
            if match is None:
                raise ValueError(
                    f"formula '{text}': behind the bar of '({body})' stand columns, joined by ':' "
                    f"or '/', and not '{name.strip()}'."
                )
            columns = (*columns, match[1] or match[2])
        yield Bar(f"({body})", sides[0].strip() or "1", columns, correlated)


def _split(text: str, mark: str) -> list[str]:
    """The parts of a text between marks outside quotes and parentheses."""
    parts, last = [], 0
    for place, sign, depth in _signs(text):
        if sign == mark and not depth:
            parts.append(text[last:place])
            last = place + 1
    return [*parts, text[last:]]


def _parentheses(text: str) -> Iterator[tuple[int, int]]:
    """Where outermost parentheses begin and end, those of function calls aside."""
    start, call = 0, False
    for place, sign, depth in _signs(text):
        if sign == "(" and depth == 1:
            before = text[:place].rstrip()
            start, call = place, bool(before) and (before[-1].isalnum() or before[-1] in "_`])")
        elif sign == ")" and not depth and not call:
            yield start, place + 1


def _signs(text: str) -> Iterator[tuple[int, str, int]]:
    """Every sign outside quotes, with its place and how deep it is in parentheses."""
    open_, quote = list[str](), ""
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
            continue
        if sign in QUOTES:
            quote = sign
        elif sign in CLOSING:
            open_.append(CLOSING[sign])
        elif sign in CLOSING.values() and (not open_ or open_.pop() != sign):
            break
        yield place, sign, len(open_)
    else:
        if not open_ and not quote:
            return
    raise ValueError(f"formula '{text}' has a parenthesis or a quotation mark without its other.")
