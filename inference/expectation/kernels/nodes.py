r"""The E-step of a latent on nodes, in one sweep over the rows.

It is that of a plain mixture whose components are the nodes (``mixture.py``), but for these:

* Two statistics that add up to the same number in all rows, as those of a right and of a wrong
  answer do, are one: with :math:`b = c - a`, :math:`\eta_a a + \eta_b b = (\eta_a - \eta_b) a + c
  \eta_b`, and the expected statistics are :math:`S_a` and :math:`c R - S_a`. That halves the work.
* Rows with the same statistics are one row that counts several times. Of answers to five questions
  there are 32 patterns, however many people gave them.
* Where the prior differs from group to group, so do the log weights of the nodes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.kernels.sweep import ALONE, CHUNK_BYTES, by_parts, work_of
from ember.inference.factors.exponential import ExponentialFactor, at_cells
from ember.inference.factors.factor import CompiledFactor, Factor, same_scale
from ember.inference.factors.tied import TieKey
from ember.inference.numerics.replay.recording import LARGE, as_one_step

__all__ = ["NodeKernel", "node_kernel"]


Keyed = tuple[TieKey, ExponentialFactor]
Compiled = Mapping[str, tuple[TieKey, CompiledFactor]]
Natural = Mapping[TieKey, Tensor]


@dataclass(frozen=True)
class NodeKernel:
    """Compiled once for a plan; see ``node_kernel``.

    Attributes:
        latent: The name of the latent.
        prior: The factor of its prior, at nodes that suit some parameters.
        priors: The cells that each of several priors reads, ``(G, entries of the latent)``.
        groups: Which of them is that of each row; None if there is but one.
        data: The factors below it.
        statistics: Of each row, ``(F, N)``, in the order of the factors.
        pairs: For each factor the sum of its two statistics, one for each event, where that is
            the same in all rows; the second statistic is then left out of ``statistics``.
        base: What is added to the log evidence of each row.
        weights: How often each row counts.
        first: Where rows are distinct ones, a row of the data for each.
    """

    latent: str
    prior: Keyed
    priors: Tensor
    groups: Tensor | None
    data: tuple[Keyed, ...]
    statistics: Tensor
    pairs: tuple[Tensor | None, ...]
    base: Tensor | None
    weights: Tensor | None
    first: Tensor | None = None

    @property
    def _all(self) -> tuple[int, int]:
        """The first row, and the one after the last."""
        return 0, self.statistics.shape[1]

    def at(self, compiled: Compiled) -> NodeKernel:
        """The same with nodes in other places."""
        key, prior = compiled[self.latent]
        assert isinstance(prior, ExponentialFactor)
        return dataclasses.replace(self, prior=(key, prior))

    def __call__(self, natural: Natural) -> tuple[float, dict[TieKey, Tensor]]:
        """Log evidence, and its gradient by the natural parameters of all tied factors."""
        total, gradient = self.swept(natural)
        return float(total), gradient

    def swept(self, natural: Natural) -> tuple[Tensor, dict[TieKey, Tensor]]:
        """The same, the log evidence as a tensor."""
        blocks, by_node = self._laid_out(natural)
        left = torch.cat(blocks, 1)
        is_large = max(self.statistics.numel(), len(left) * self.statistics.shape[1]) > LARGE
        if is_large:
            total, sums, counts = as_one_step(self._sweep, left, by_node)
        else:
            total, sums, counts = self._part(left, by_node, self._all)
        return total, self._scattered(natural, sums, counts)

    def completed(
        self, natural: Natural, weights: Callable[[Tensor | slice], Tensor]
    ) -> dict[TieKey, Tensor]:
        """The gradient by all natural parameters with the weights of the nodes given.

        Args:
            natural: Natural parameters of all tied factors, for their shapes.
            weights: The weights ``(n, Q)`` of the nodes in some rows.
        """
        blocks, by_node = self._laid_out(natural)
        left = torch.cat(blocks, 1)
        sums, counts = torch.zeros_like(left), torch.zeros_like(by_node)
        for start, stop in self._chunks(left, self._all):
            rows = slice(start, stop) if self.first is None else self.first[start:stop]
            each = weights(rows).T
            if self.weights is not None:
                each = each * self.weights[start:stop]
            self._collect(each, sums, counts, start, stop)
        return self._scattered(natural, sums, counts)

    def _scattered(self, natural: Natural, sums: Tensor, counts: Tensor) -> dict[TieKey, Tensor]:
        """Expected statistics ``(Q, F)`` and counts ``(Q, G)``, cell by cell."""
        counts = counts.T
        prior_key, prior = self.prior
        gradients = {key: torch.zeros_like(eta) for key, eta in natural.items()}
        widths = [
            form.cells.shape[1] * natural[key].shape[1] // (1 if total is None else 2)
            for (key, form), total in zip(self.data, self.pairs, strict=True)
        ]
        each = sums.split(widths, 1)
        for (key, form), total, block in zip(self.data, self.pairs, each, strict=True):
            if total is not None:
                rest = counts.sum(0).unsqueeze(1) * total - block
                block = torch.stack([block, rest], -1).flatten(1)
            cells = form.cells.reshape(-1)
            gradients[key].index_add_(0, cells, block.reshape(len(cells), -1))
        cells = self.priors.reshape(-1)
        block = (counts @ prior.columns.matrix.T).reshape(len(cells), -1)
        gradients[prior_key].index_add_(0, cells, block)
        return gradients

    def gap(self, natural: Natural, is_even: Tensor) -> float:
        """The largest gap, among all rows, between log evidence by even and by odd nodes.

        Args:
            natural: Natural parameters of all tied factors.
            is_even: Which nodes are even, ``(Q,)``.
        """
        blocks, by_node = self._laid_out(natural)
        left, largest = torch.cat(blocks, 1), 0.0
        even = is_even.to(left)
        sides = torch.stack([even, 1.0 - even])
        for start, stop in self._chunks(left, self._all):
            joint, _ = self._joint(left, by_node, start, stop)
            apart = (sides @ joint).log().diff(dim=0).abs()
            largest = max(largest, float(apart.nan_to_num(nan=0.0).max()))
        return largest

    def _laid_out(self, natural: Natural) -> tuple[list[Tensor], Tensor]:
        """Natural parameters ``(Q, F)`` of each factor, and what each node adds, ``(Q, G)``."""
        prior_key, prior = self.prior
        shift = prior.columns.matrix.new_zeros(())
        blocks = []
        for (key, form), total in zip(self.data, self.pairs, strict=True):
            block = at_cells(natural[key], form.cells).flatten(1)  # (Q, J P)
            if total is not None:
                first, second = block[:, 0::2], block[:, 1::2]
                shift, block = shift + second @ total, first - second
            blocks.append(block)
        log_prior = (
            at_cells(natural[prior_key], self.priors).flatten(1) @ prior.columns.matrix
        )  # (G, Q)
        if prior.base is not None:
            log_prior = log_prior + prior.base
        return blocks, (log_prior + shift).T.contiguous()

    def _chunks(self, left: Tensor, bounds: tuple[int, int]) -> list[tuple[int, int]]:
        """Where chunks of some rows begin and end, which fit the cache."""
        width = max(256, CHUNK_BYTES // (8 * max(len(self.statistics), len(left))))
        first, last = bounds
        return [(start, min(start + width, last)) for start in range(first, last, width)]

    def _joint(self, left: Tensor, by_node: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Of a chunk the density at each node over that at the best, ``(Q, n)``, and its log."""
        each = by_node if self.groups is None else by_node[:, self.groups[start:stop]]
        joint = torch.addmm(each, left, self.statistics[:, start:stop])
        top = joint.amax(0)
        return joint.sub_(top).exp_(), top

    def _sweep(self, left: Tensor, by_node: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log evidence, sums ``(Q, F)``, and the expected count ``(Q, G)`` of each node."""
        rows, part = self._all[1], functools.partial(self._part, left, by_node)
        total, sums, counts = by_parts(part, rows, work_of(rows, left.shape), ALONE, left.device)
        return total, sums, counts

    def _part(
        self, left: Tensor, by_node: Tensor, bounds: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What some of the rows contribute."""
        sums, counts = torch.zeros_like(left), torch.zeros_like(by_node)
        total = left.new_zeros(())
        for start, stop in self._chunks(left, bounds):
            joint, top = self._joint(left, by_node, start, stop)
            evidence = joint.sum(0)
            row = evidence.log().add_(top)
            if self.base is not None:
                row += self.base[start:stop]
            share = evidence.reciprocal_()
            if self.weights is not None:
                row *= self.weights[start:stop]
                share *= self.weights[start:stop]
            total += row.sum()
            joint.mul_(share)
            self._collect(joint, sums, counts, start, stop)
        return total, sums, counts

    def _collect(
        self, weights: Tensor, sums: Tensor, counts: Tensor, start: int, stop: int
    ) -> None:
        """Adds the statistics and counts of a chunk, each row weighed by the nodes ``(Q, n)``."""
        sums.addmm_(weights, self.statistics[:, start:stop].T)
        if self.groups is None:
            counts += weights.sum(1, keepdim=True)
        else:
            counts.index_add_(1, self.groups[start:stop], weights)


def node_kernel(
    factors: Sequence[Factor], compiled: Compiled, latent: str, symbol: str, row: str | None
) -> NodeKernel | None:
    """The kernel, or None if there is more to the model than a latent in the plate of rows.

    Args:
        factors: All factors.
        compiled: Those in exponential-family form.
        latent: The only latent site, which is on nodes.
        symbol: Its dim.
        row: The plate of rows.
    """
    if row is None or len(factors) < 2:
        return None
    prior: Keyed | None = None
    priors, groups = torch.zeros((1, 1), dtype=torch.long), None
    data: list[Keyed] = []
    scale = factors[0].scale
    for factor in factors:
        if factor.name not in compiled or factor.plates != {row}:
            return None
        key, form = compiled[factor.name]
        if not isinstance(form, ExponentialFactor):
            return None
        if not same_scale(factor.scale, scale):
            return None
        if factor.name == latent:
            if factor.dims not in ((symbol,), (row, symbol)):
                return None
            prior, priors = (key, form), form.cells
            if factor.dims == (row, symbol):
                priors, groups = torch.unique(form.cells, dim=0, return_inverse=True)
        elif factor.dims == (symbol, row) and form.cells.shape[0] == form.shape[0]:
            data.append((key, form))
        else:
            return None
    if prior is None or not data or (scale is not None and scale.dims != (row,)):
        return None
    pairs = tuple(_sum_of_pair(form) for _, form in data)
    kept = [
        form.columns.matrix if total is None else form.columns.matrix[0::2]
        for (_, form), total in zip(data, pairs, strict=True)
    ]
    bases = [form.base.reshape(-1) for _, form in data if form.base is not None]
    kernel = NodeKernel(
        latent,
        prior,
        priors,
        groups,
        tuple(data),
        kept[0].contiguous() if len(kept) == 1 else torch.cat(kept),
        pairs,
        torch.stack(bases).sum(0) if bases else None,
        None if scale is None else scale.tensor,
    )
    return _with_distinct_rows(kernel)


def _sum_of_pair(form: ExponentialFactor) -> Tensor | None:
    """The sum of the two statistics of each event, if there are two and all rows agree on it."""
    cells = form.cells.shape[1]
    statistics = form.columns.matrix
    if len(statistics) != 2 * cells:
        return None
    total = statistics[0::2] + statistics[1::2]
    return total[:, 0].clone() if bool((total == total[:, :1]).all()) else None


def _with_distinct_rows(kernel: NodeKernel) -> NodeKernel:
    """The kernel with equal rows as one, if that leaves half of them or less."""
    statistics, rows = kernel.statistics, kernel.statistics.shape[1]
    if kernel.base is not None:
        return kernel
    table = statistics
    if kernel.groups is not None:
        table = torch.cat([statistics, kernel.groups.to(statistics).unsqueeze(0)])
    # Rows are told apart by one number each, to eleven digits: a sum may be rounded in two ways.
    mix = torch.arange(1.0, 1.0 + len(table)).to(table).mul(12.9898).sin() + 2.0
    number = mix @ table
    number = (1e11 * number / number.abs().amax().clamp_min(1e-300)).round()
    _, place, times = torch.unique(number, return_inverse=True, return_counts=True)
    if 2 * len(times) > rows:
        return kernel
    first = torch.zeros_like(times).index_copy_(0, place, torch.arange(rows).to(place))
    if not torch.equal(table[:, first][:, place], table):
        return kernel  # two different rows share a number
    weights = (
        times.to(statistics)
        if kernel.weights is None
        else statistics.new_zeros(len(times)).index_add_(0, place, kernel.weights)
    )
    groups = None if kernel.groups is None else kernel.groups[first]
    return dataclasses.replace(
        kernel,
        statistics=statistics[:, first].contiguous(),
        weights=weights,
        groups=groups,
        first=first,
    )
