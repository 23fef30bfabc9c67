"""Arguments that are affine in the parameters, once found: see ``reading/matching/affine.py``."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.parameters.batching import Shapes, batched_rows

__all__ = ["FROM_SPACE", "TO_SPACE", "AffineMap", "ParameterEntries", "joined"]


MANY = 10_000  # features, of which a product of matrices takes less time
Function = Callable[[Tensor], Tensor]
TO_SPACE: dict[str, Function] = {"raw": lambda x: x, "log": torch.log, "logit": torch.logit}
FROM_SPACE: dict[str, Function] = {"raw": lambda x: x, "log": torch.exp, "logit": torch.sigmoid}


@dataclass(frozen=True)
class ParameterEntries:
    """Rows of coefficients gathered from the entries of several parameters, laid end to end."""

    sources: tuple[str, ...]
    entries: tuple[tuple[int, ...], ...]
    on: str = "raw"
    event_dim: int = 1
    logs: tuple[str, ...] = ()

    def rows(self, params: Mapping[str, Tensor]) -> Tensor:
        """The coefficients of every row, shape ``(R, F)``."""
        values = joined(self.sources, params, self.logs)
        return values[torch.tensor(self.entries, device=values.device)]

    def batched(self, shapes: Shapes, count: int) -> "ParameterEntries":
        """The table for several values of every parameter: the entries of each value in turn."""
        sizes = [shapes[source].numel() for source in self.sources]
        entries = batched_rows(torch.tensor(self.entries), sizes, count)
        rows = tuple(tuple(row) for row in entries.flatten(0, 1).tolist())
        return dataclasses.replace(self, entries=rows)

    def batched_index(self, index: Tensor, shapes: Shapes, count: int) -> Tensor:
        """The rows that an index points to, for each of several values."""
        return batched_rows(index, (len(self.entries),), count)


@dataclass(frozen=True)
class AffineMap:
    """An argument as ``inverse(sum_f features_f * theta[row, f] + offset)``.

    ``features`` has the argument's batch shape and a last dim of size ``F``; ``index`` names the
    row of coefficients of every entry. With ``event_dim`` 1 the argument is a vector of logits,
    and its dim is the last of the batch's.
    """

    domain: str
    space: str
    table: ParameterEntries
    index: Tensor
    features: Tensor
    offset: Tensor
    event_dim: int = 0

    def __getstate__(self) -> dict[str, object]:
        """All but what can be made again."""
        return {name: value for name, value in self.__dict__.items() if name != "about_centre"}

    @property
    def is_constant(self) -> bool:
        return False

    @property
    def sources(self) -> tuple[str, ...]:
        return self.table.sources

    def evaluate(self, params: Mapping[str, Tensor]) -> Tensor:
        """The argument at ``params``, broadcast dims of size 1."""
        line = _products(self.about_centre, self.coefficients(params)[self.index])
        value: Tensor = FROM_SPACE[self.space](line + self.offset)
        return value

    def coefficients(self, params: Mapping[str, Tensor]) -> Tensor:
        """The rows of coefficients ``(R, F + 1)``, the last of each the height at the centre."""
        rows = self.table.rows(params)
        return torch.cat([rows, (rows * self.centre).sum(-1, keepdim=True)], -1)

    @functools.cached_property
    def about_centre(self) -> Tensor:
        """The features from the centre, and a one, ``(..., F + 1)``.

        Over years, or seconds since 1970, a line is a small difference of large numbers; what the
        height at the centre loses is at least the same in all rows.
        """
        far = self.features - self.centre
        return torch.cat([far, torch.ones_like(far[..., :1])], -1)

    def rounding(self, params: Mapping[str, Tensor]) -> float:
        """How far the argument may be off where its terms are added up as they stand."""
        terms = self.features * self.table.rows(params)[self.index]
        size = terms.abs().sum(-1).nan_to_num(0.0, 0.0).max()
        height = self.evaluate(params).abs().max() if self.space == "log" else 1.0
        return float(8.0 * torch.finfo(terms.dtype).eps * size * height)

    @functools.cached_property
    def centre(self) -> Tensor:
        """A point amid the features, ``(F,)``; any would do, but for rounding."""
        mean = self.features.reshape(-1, self.features.shape[-1]).nanmean(0)
        return torch.where(mean.isfinite(), mean, 0.0)


def _products(features: Tensor, coefficients: Tensor) -> Tensor:
    """The sums of products over the last dim; of many rows a product of matrices."""
    if features.numel() < MANY:
        found: Tensor = (features * coefficients).sum(-1)
        return found
    return torch.einsum("...f,...f->...", features, coefficients)


def joined(
    sources: tuple[str, ...], params: Mapping[str, Tensor], logs: tuple[str, ...] = ()
) -> Tensor:
    """The entries of several parameters laid end to end, those of ``logs`` as logarithms."""
    values = [params[n].log() if n in logs else params[n] for n in sources]
    return torch.cat([value.reshape(-1) for value in values])
