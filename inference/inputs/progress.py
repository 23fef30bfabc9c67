"""Bars that show how far long work has come, to whoever watches: a terminal, or a notebook.

Nothing is shown where the output goes into a file or to another program.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm.auto import tqdm

__all__ = ["counted", "is_notebook", "is_terminal"]


T = TypeVar("T")
PATIENCE = 1.0  # seconds of work without a bar


def is_terminal() -> bool:
    """Whether the standard error goes to a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def is_notebook() -> bool:
    """Whether this runs in the kernel of a notebook."""
    return "ipykernel" in sys.modules


def counted(items: Sequence[T], name: str) -> Iterator[T]:
    """The items, with a bar if they take more than a second.

    In a notebook it is drawn by widgets, where these are installed: as text it would stay among
    what the cell has printed.
    """
    widgets = is_notebook() and importlib.util.find_spec("ipywidgets") is not None
    watched = widgets or (is_terminal() and not is_notebook())
    return iter(tqdm(items, desc=name, delay=PATIENCE, leave=False, disable=not watched))
