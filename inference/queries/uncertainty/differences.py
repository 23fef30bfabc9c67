"""Differences of a function around a point, one step up and one down each coordinate."""

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from ember.inference.inputs.progress import counted

__all__ = ["Several", "steps_around"]


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
