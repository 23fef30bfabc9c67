"""The progress bar of the loop."""

import contextlib
from collections.abc import Callable, Iterator

from tqdm.auto import tqdm

from ember.inference.inputs.progress import is_notebook, is_terminal

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(show: bool, total: int, name: str) -> Iterator[Callable[[float], None]]:
    """A bar that shows the objective; yields the function that advances it.

    It is seen on a terminal and in a notebook; where the output goes elsewhere there is none.
    """
    shown = show and (is_terminal() or is_notebook())
    with tqdm(total=total, desc=name, disable=not shown, leave=False) as bar:

        def tick(objective: float) -> None:
            bar.update()
            bar.set_postfix_str(f"objective {objective:.6f}", refresh=False)

        yield tick
