"""The entries of a latent as a table: posterior means and deviations under the names known."""

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor

__all__ = ["entry_table"]


def entry_table(
    name: str, axes: Mapping[int, Sequence[str]], mean: Tensor, deviation: Tensor
) -> pd.DataFrame:
    """A row for each entry, with its mean and standard deviation.

    Args:
        name: The latent.
        axes: Names along the axes of ``mean``, where they are known; numbers stand elsewhere.
        mean: Posterior means.
        deviation: Posterior standard deviations, in the same shape.
    """
    sides = [
        list(axes[axis]) if len(axes.get(axis, ())) == size else list(range(size))
        for axis, size in enumerate(mean.shape)
    ]
    index: pd.Index | None = None
    if len(sides) == 1:
        index = pd.Index(sides[0], name=name)
    elif sides:
        index = pd.MultiIndex.from_product(sides)
    values = {"mean": mean, "std. dev.": deviation}
    return pd.DataFrame({n: t.reshape(-1).cpu().numpy() for n, t in values.items()}, index=index)
