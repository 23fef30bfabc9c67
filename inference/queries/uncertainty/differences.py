"""Differences of a function around a point, one step up and one down each coordinate."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ember.inference.inputs.progress import counted

__all__ = ["Several", "smoothed", "steps_around"]


WIDENINGS = 8  # of differences that begin between two jumps of a slope
Several = Callable[[Iterable[Tensor]], Iterable[Tensor]]  # a function, at one place after another


def steps_around(
    function: Several, point: Tensor, places: Tensor, steps: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A function one step up and one step down each coordinate, and how far apart these are."""
    pairs, widths = list(zip(places.tolist(), steps.tolist(), strict=True)), list[Tensor]()

    def vectors() -> Iterator[Tensor]:
        for place, step in counted(pairs, "derivatives"):
            up, down = point.clone(), point.clone()
            up[place] += step
            down[place] -= step
            # Large numbers move by whole roundings: by how much is what counts.
            widths.append(up[place] - down[place])
            yield from (up, down)

    values = list(function(vectors()))
    return list(zip(values[::2], values[1::2], widths, strict=True))


def smoothed(
    gradient: Several,
    point: Tensor,
    places: Tensor,
    steps: Tensor,
    between: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor]:
    """Minus the derivative of a gradient over a whole standard deviation, across its jumps.

    Args:
        gradient: By the coordinates, at one place after another.
        point: Around which.
        places: The coordinates ``(A,)``.
        steps: The length of the first differences ``(A,)``.
        between: Limits of their length.

    Returns:
        The matrix ``(A, A)``, and the standard deviations by which it was found.
    """
    matrix = point.new_zeros(len(places), len(places))
    for again in range(WIDENINGS):
        if again:
            own = matrix.diagonal()
            wider = torch.where(own > 0.0, own.abs().rsqrt(), steps).clamp(*between)
            steps = torch.where(wider.isfinite(), wider, steps)
        around = steps_around(gradient, point, places, steps)
        rows = [(down - up) / width for up, down, width in around]
        matrix = torch.stack(rows) if rows else matrix
    return 0.5 * (matrix + matrix.mT), steps
