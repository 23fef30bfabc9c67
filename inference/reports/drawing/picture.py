"""A figure that a notebook shows by itself, whether or not pyplot has been set up."""

import io

from matplotlib.figure import Figure

__all__ = ["Picture"]


class Picture(Figure):
    """A Matplotlib figure made without pyplot: nothing global changes, nothing needs closing."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
