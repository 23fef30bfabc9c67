r"""One sweep over the rows of a mixture, in torch.

.. math:: G = c + A\,F, \qquad R = \operatorname{softmax}_k(G), \qquad S = R\,F^\top

with the features ``F (F, N)`` of the rows, formed in chunks of columns that fit the cache, in one
buffer for each thread: nothing of size ``N K`` or ``N F`` is ever stored. Several parameter values
go through together: their ``A`` are stacked, and the softmax runs within each block of ``K`` rows.
What one sweep reads, and what it costs to start, is then shared by all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ember.inference.factors.columns import NOTHING, Columns
from ember.inference.numerics.draws import Draws
from ember.inference.numerics.threads import bounds_of, in_threads

__all__ = [
    "ALONE",
    "CHUNK_BYTES",
    "Rows",
    "Swept",
    "by_parts",
    "spread",
    "sweep",
    "sweep_at_once",
    "work_of",
]


Swept = tuple[Tensor, Tensor, Tensor]
"""Log evidence ``(R,)``, sums of features ``(R, K, F)`` and expected counts ``(R, K)``."""

CHUNK_BYTES = 4_000_000  # of features; the chunk and its log joint then stay in the cache
FEW_FEATURES = 16  # which the exponential of a component costs as much time as
ALIGNED = 256  # rows: a chunk, and a part, has a multiple of so many
ALONE = 1_000_000  # products that one thread does while another is woken


@dataclass(frozen=True)
class Rows:
    """What a sweep reads.

    Attributes:
        columns: Those of each site of the rows.
        base: What is added to the log evidence of each row, ``(N,)``.
        weights: How often each row counts, ``(N,)``.
    """

    columns: tuple[Columns, ...]
    base: Tensor | None
    weights: Tensor | None

    def __len__(self) -> int:
        return self.columns[0].data.shape[1]

    @functools.cached_property
    def features(self) -> int:
        """The number of features of a row, of all sites together."""
        return sum(each.features for each in self.columns)

    @functools.cached_property
    def factors(self) -> Tensor:
        """The rows of ``data`` whose product is each feature, ``(2, F)``; see ``Columns``."""
        each, held = [], 0
        for columns in self.columns:
            factors = columns.factors
            each.append(torch.where(factors == NOTHING, NOTHING, factors + held))
            held += len(columns.data)
        return torch.cat(each, 1)

    @functools.cached_property
    def data(self) -> Tensor:
        """What the sites hold, one below the other, ``(M, N)``."""
        held = [each.data for each in self.columns]
        return held[0] if len(held) == 1 else torch.cat(held)

    def sampled(self, count: int) -> Rows:
        """Some rows, drawn at random, each as often as there are more in all; without a base."""
        first = self.columns[0].data
        chosen = Draws(0, first.device).permutation(len(self))[:count].sort().values
        columns = (replace(each, data=each.data[:, chosen]) for each in self.columns)
        counts = first.new_ones(count) if self.weights is None else self.weights[chosen]
        weights = len(self) / count * counts
        return Rows(tuple(columns), None, weights)

    def form(self, start: int, stop: int, out: Tensor) -> None:
        """Writes the features of some rows into ``out``, ``(F, n)``."""
        place = 0
        for each in self.columns:
            each.form(start, stop, out[place : place + each.features])
            place += each.features

    def chunks(self, start: int, stop: int, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Some rows after the other, with their features ``(F, n)``, for as long as none follow."""
        held = self.held
        places = range(start, stop, width)
        if held is not None:
            for first in places:
                chosen = slice(first, min(first + width, stop))
                yield chosen, held[:, chosen]
            return
        room = self.columns[0].data.new_empty(self.features * min(width, stop - start))
        for first in places:
            last = min(first + width, stop)
            out = room[: self.features * (last - first)].view(self.features, -1)
            self.form(first, last, out)
            yield slice(first, last), out

    @functools.cached_property
    def held(self) -> Tensor | None:
        """The features of all rows, if they are few, or held as they are."""
        if 8 * self.features * len(self) <= CHUNK_BYTES:
            return self.whole
        is_one = len(self.columns) == 1 and type(self.columns[0]) is Columns
        return self.columns[0].data if is_one else None

    @functools.cached_property
    def whole(self) -> Tensor:
        """The features of all rows, kept where they are few."""
        out = self.columns[0].data.new_empty(self.features, len(self))
        self.form(0, len(self), out)
        return out


def work_of(rows: int, shape: torch.Size) -> int:
    """The products of a sweep, its exponentials counted as some.

    Args:
        rows: The number of rows.
        shape: That of what each feature counts for, ``(..., F)``.
    """
    return rows * shape[:-1].numel() * (shape[-1] + FEW_FEATURES)


def sweep(rows: Rows, left: Tensor, constant: Tensor) -> Swept:
    """Log evidence and expected statistics at several parameter values.

    Args:
        rows: The rows.
        left: What each feature counts for in each component, ``(R, K, F)``.
        constant: What each component begins with, its log weight among it, ``(R, K)``.
    """
    part = functools.partial(_swept, rows, left, constant)
    total, sums, counts = by_parts(
        part, len(rows), work_of(len(rows), left.shape), ALONE, left.device
    )
    return total, sums, counts


def by_parts(
    part: Callable[[tuple[int, int]], Sequence[Tensor]],
    rows: int,
    work: int,
    alone: int,
    device: torch.device,
) -> list[Tensor]:
    """What all rows contribute, parts of them in threads where these are worth it.

    Args:
        part: What the rows from one to before another contribute.
        rows: The number of rows.
        work: The products that all of them take.
        alone: Products that one thread does while another is woken.
        device: Where they are; threads are worth it on the CPU alone.
    """
    most = work // alone if device.type == "cpu" else 1
    each = in_threads(part, bounds_of(rows, ALIGNED, most))
    return [functools.reduce(torch.add, contributed) for contributed in zip(*each, strict=True)]


def _swept(rows: Rows, left: Tensor, constant: Tensor, bounds: tuple[int, int]) -> Swept:
    """What some of the rows contribute."""
    batch, components, features = left.shape
    flat, start = left.flatten(0, 1), constant.reshape(-1, 1)
    # One value's log joint is small beside the features; that of many must fit as well.
    widest = features if batch == 1 else max(features, len(flat))
    width = max(1, CHUNK_BYTES // (8 * widest * ALIGNED)) * ALIGNED
    sums, counts = torch.zeros_like(flat), left.new_zeros(len(flat))
    total = left.new_zeros(batch)
    room = left.new_empty(len(flat) * min(width, bounds[1] - bounds[0]))
    for chosen, chunk in rows.chunks(*bounds, width):
        stacked = room[: len(flat) * chunk.shape[1]].view(len(flat), -1)
        torch.addmm(start, flat, chunk, out=stacked)
        joint = stacked.view(batch, components, -1)
        top = joint.amax(1)
        joint.sub_(top.unsqueeze(1)).exp_()
        evidence = joint.sum(1)
        row = evidence.log().add_(top)
        weight: Tensor | None = None
        if rows.base is not None:
            row += rows.base[chosen]
        if rows.weights is not None:
            weight = rows.weights[chosen]
            row *= weight
        total += row.sum(1)
        share = evidence.reciprocal_() if weight is None else weight / evidence
        joint.mul_(share.unsqueeze(1))
        sums.addmm_(stacked, chunk.T)
        counts += stacked.sum(1)
    return total, sums.view(left.shape), counts.view(batch, components)


def sweep_at_once(rows: Rows, left: Tensor, constant: Tensor) -> Swept:
    """The same for few rows, without changing anything in place: see ``numerics/replay``."""
    batch, components, _ = left.shape
    stacked = torch.addmm(constant.reshape(-1, 1), left.flatten(0, 1), rows.whole)
    joint = stacked.view(batch, components, -1)
    top = joint.amax(1, keepdim=True)
    density = (joint - top).exp()
    evidence = density.sum(1)
    row = evidence.log() + top.squeeze(1)
    if rows.base is not None:
        row = row + rows.base
    if rows.weights is None:
        share = evidence.reciprocal()
    else:
        row, share = row * rows.weights, rows.weights / evidence
    posterior = density * share.unsqueeze(1)
    sums = posterior.flatten(0, 1) @ rows.whole.T
    return row.sum(1), sums.view(left.shape), posterior.sum(2)


def spread(rows: Rows, affine: Tensor) -> Tensor:
    r"""The covariance of each row's statistics given the row, summed over rows.

    With the features :math:`f_n` of a row, a one before them, and :math:`z_n` its component in one
    of K places,

    .. math:: \sum_n w_n \operatorname{Cov}(z_n \otimes f_n) = \sum_n w_n
              \left[\operatorname{diag}(r_n) - r_n r_n^\top\right] \otimes f_n f_n^\top,

    the Hessian of the log evidence by what features count for in each component.

    Args:
        rows: The rows.
        affine: What each component begins with, then what features count for, ``(K, 1 + F)``.

    Returns:
        The covariance ``(K (1 + F), K (1 + F))``.
    """
    part, work = functools.partial(_spread, rows, affine), len(rows) * affine.numel() ** 2
    (covariance,) = by_parts(part, len(rows), work, ALONE, affine.device)
    return covariance


def _spread(rows: Rows, affine: Tensor, bounds: tuple[int, int]) -> tuple[Tensor]:
    """What some of the rows contribute."""
    components, features = affine.shape
    width = max(1, CHUNK_BYTES // (8 * affine.numel() * ALIGNED)) * ALIGNED
    own = affine.new_zeros(components, features, features)
    together = affine.new_zeros(affine.numel(), affine.numel())
    for chosen, chunk in rows.chunks(*bounds, width):
        posterior = torch.addmm(affine[:, :1], affine[:, 1:], chunk).softmax(0)
        known = torch.cat([torch.ones_like(chunk[:1]), chunk])
        each = posterior.unsqueeze(1) * known
        counted = each if rows.weights is None else each * rows.weights[chosen]
        own += counted @ known.T
        together.addmm_(counted.flatten(0, 1), each.flatten(0, 1).T)
    return (torch.block_diag(*own) - together,)
