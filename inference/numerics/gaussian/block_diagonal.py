"""Many independent components of a few entries each: all components of one size at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.gaussian.blocks import (
    block_draw,
    block_log_integral,
    block_moments,
    lower_positions,
)
from ember.inference.numerics.gaussian.gathering import take
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.small import (
    LARGEST,
    LOG_TWO_PI,
    MANY,
    small_moments,
)
from ember.inference.numerics.gaussian.system import GaussianSystem, Integral
from ember.inference.numerics.shapes import broadcast_shapes

__all__ = ["BlockDiagonalSystem"]


DISTINCT = 8  # different sizes up to which each has a bucket of its own


@dataclass(frozen=True, eq=False)
class _Bucket:
    """Components of one size, or made so by entries with precision 1 that nothing is known of.

    Attributes:
        members: Numbers of the components, ``(B,)``.
        entries: Of each component, ``(q, B)``; ``count`` where there is none.
        lower: Where the lower triangle of each component, row by row, stands in the pattern,
            ``(q (q + 1) / 2, B)``: ``nnz`` for a zero and ``nnz + 1`` for a one.
        absent: How many entries each component lacks, ``(B,)``; None if none lacks any.
    """

    members: Tensor
    entries: Tensor
    lower: Tensor
    absent: Tensor | None

    @property
    def is_small(self) -> bool:
        """Whether loops over the entries are faster than LAPACK."""
        size, count = self.entries.shape
        return size <= LARGEST and count >= MANY * size


class BlockDiagonalSystem(GaussianSystem):
    """One value for each connected component of the pattern.

    Args:
        pattern: The pattern.
        components: The component of each entry, ``(count,)``, numbered from 0.
    """

    def __init__(self, pattern: Pattern, components: Tensor) -> None:
        self.pattern = pattern
        self.components = components
        sizes = components.bincount()
        self.count = len(sizes)
        self.place = _places(components, sizes)
        self.buckets = list(self._buckets(sizes))
        self.order = torch.cat([bucket.members for bucket in self.buckets]).argsort()
        self.description = _description(sizes)

    def integrate(self, info: Tensor, precision: Tensor) -> Integral:
        infos, precisions = self._padded(info, precision)
        batch = broadcast_shapes(info.shape[:-1], precision.shape[:-1])
        mean = info.new_empty(*batch, infos.shape[-1])
        covariance = torch.empty_like(precisions)
        values = []
        for bucket in self.buckets:
            h, lower = take(infos, bucket.entries), take(precisions, bucket.lower)
            if bucket.is_small:
                value, means, pairs = small_moments(h.movedim(-2, 0), lower.movedim(-2, 0))
                means, pairs = means.movedim(0, -2), pairs.movedim(0, -2)
            else:
                value, means, full = block_moments(h.mT, _full(lower))
                rows, columns, _ = lower_positions(full.shape[-1], full.device)
                means, pairs = means.mT, full[..., rows, columns].mT
            mean[..., bucket.entries] = means
            covariance[..., bucket.lower] = pairs
            values.append(_without_absent(value, bucket))
        value = torch.cat(values, -1)[..., self.order]
        return Integral(
            value, mean[..., : self.pattern.count], covariance[..., : len(self.pattern)]
        )

    def plain(self, info: Tensor, precision: Tensor) -> Tensor:
        infos, precisions = self._padded(info, precision)
        values = []
        for bucket in self.buckets:
            h, lower = take(infos, bucket.entries), take(precisions, bucket.lower)
            values.append(_without_absent(block_log_integral(h.mT, _full(lower)), bucket))
        return torch.cat(values, -1)[..., self.order]

    def draw(self, info: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
        infos, precisions = self._padded(info, precision)
        noises = torch.cat([noise, noise[..., :1]], -1)
        batch = broadcast_shapes(info.shape[:-1], precision.shape[:-1], noise.shape[:-1])
        drawn = info.new_empty(*batch, self.pattern.count + 1)
        for bucket in self.buckets:
            h, lower = take(infos, bucket.entries), take(precisions, bucket.lower)
            each = block_draw(h.mT, _full(lower), noises[..., bucket.entries].mT)
            drawn[..., bucket.entries] = each.mT
        return drawn[..., : self.pattern.count]

    def pairs(self, info: Tensor, precision: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        with torch.no_grad():
            infos, precisions = self._padded(info, precision)
            batch = broadcast_shapes(info.shape[:-1], precision.shape[:-1])
            found = info.new_zeros(*batch, len(rows))
            together = self.components[rows] == self.components[columns]
            for bucket in self.buckets:
                local = torch.full_like(self.order, -1)
                local[bucket.members] = torch.arange(len(bucket.members), device=local.device)
                block = torch.where(together, local[self.components[rows]], -1)
                here = (block >= 0).nonzero().squeeze(-1)
                if len(here) == 0:
                    continue
                h, lower = take(infos, bucket.entries), take(precisions, bucket.lower)
                _, _, full = block_moments(h.mT, _full(lower))
                places = self.place[rows[here]], self.place[columns[here]]
                found[..., here] = full[..., block[here], places[0], places[1]]
            return found

    def _padded(self, info: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        """With an entry of which nothing is known, and with the precisions 0 and 1 at the end."""
        constants = torch.cat([precision[..., :1] * 0.0, precision[..., :1] * 0.0 + 1.0], -1)
        return (
            torch.cat([info, torch.zeros_like(info[..., :1])], -1),
            torch.cat([precision, constants], -1),
        )

    def _buckets(self, sizes: Tensor) -> Iterator[_Bucket]:
        """Each size a bucket, or sizes rounded up if there are many."""
        rounded = sizes
        if len(sizes.unique()) > DISTINCT:
            steps = torch.tensor(_STEPS, device=sizes.device)
            beyond = sizes > steps[-1]
            up = steps[torch.searchsorted(steps, sizes).clamp_max(len(steps) - 1)]
            rounded = torch.where(beyond, sizes, up)
        pattern = self.pattern
        of_pair = self.components[pattern.rows]
        below = self.place[pattern.rows]
        within = below * (below + 1) // 2 + self.place[pattern.columns]
        every = torch.arange(len(pattern), device=sizes.device)
        for size in rounded.unique().tolist():
            members = (rounded == size).nonzero().squeeze(-1)
            local = torch.full_like(sizes, -1)
            local[members] = torch.arange(len(members), device=sizes.device)
            own = (local[self.components] >= 0).nonzero().squeeze(-1)
            entries = sizes.new_full((size, len(members)), pattern.count)
            entries[self.place[own], local[self.components[own]]] = own
            rows, columns, _ = lower_positions(size, sizes.device)
            missing = (rows == columns).unsqueeze(-1) & (rows.unsqueeze(-1) >= sizes[members])
            lower = len(pattern) + missing.to(sizes.dtype)
            inside = local[of_pair] >= 0
            lower[within[inside], local[of_pair[inside]]] = every[inside]
            absent = size - sizes[members]
            yield _Bucket(members, entries, lower, absent if bool(absent.any()) else None)


_STEPS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256]


def _places(components: Tensor, sizes: Tensor) -> Tensor:
    """The place of each entry within its component, ``(count,)``."""
    order = components.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(components)
    every = torch.arange(len(order), device=order.device)
    place[order] = every - starts[components[order]]
    return place


def _full(lower: Tensor) -> Tensor:
    """Lower triangles ``(..., q (q + 1) / 2, B)`` as matrices ``(..., B, q, q)``."""
    size = int((8 * lower.shape[-2] + 1) ** 0.5 - 1) // 2
    _, _, positions = lower_positions(size, lower.device)
    return lower.mT[..., positions]


def _without_absent(value: Tensor, bucket: _Bucket) -> Tensor:
    """Log integrals without the entries that were added."""
    if bucket.absent is None:
        return value
    return value - 0.5 * LOG_TWO_PI * bucket.absent.to(value.dtype)


def _description(sizes: Tensor) -> str:
    least, most = int(sizes.min()), int(sizes.max())
    size = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    entries = "entry" if most == 1 else "entries"
    blocks = "block" if len(sizes) == 1 else "blocks"
    return f"{len(sizes):,} {blocks} of {size} {entries}"
