r"""The E-step of a plain mixture, in one sweep over the rows.

Where a model has one latent in one plate and every factor is a product of natural parameters and
sufficient statistics, the log joint of all components and rows is a single matrix product: that of
the factors' natural parameters side by side and their statistics, one below the other
(``sweep.py``). No graph is recorded, and the result is that of the general contraction and its
gradient, to rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.kernels.compiled_sweep import compiled_sweep, is_worth_compiled
from ember.inference.expectation.kernels.sweep import (
    Rows,
    spread,
    sweep,
    sweep_at_once,
    work_of,
)
from ember.inference.factors.exponential import ExponentialFactor, at_cells
from ember.inference.factors.factor import CompiledFactor, Factor, same_scale
from ember.inference.factors.tied import TieKey
from ember.inference.numerics.replay.recording import LARGE, as_one_step

__all__ = ["MixtureKernel", "mixture_kernel"]


Keyed = tuple[TieKey, ExponentialFactor]
Natural = Mapping[TieKey, Tensor]


@dataclass(frozen=True)
class MixtureKernel:
    """Compiled once for a plan; see ``mixture_kernel``."""

    prior: Keyed
    data: tuple[Keyed, ...]
    rows: Rows

    def __call__(self, natural: Natural) -> tuple[float, dict[TieKey, Tensor]]:
        """Log evidence, and its gradient by the natural parameters of all tied factors."""
        total, gradient = self.swept(natural)
        return float(total), gradient

    def swept(self, natural: Natural) -> tuple[Tensor, dict[TieKey, Tensor]]:
        """The same, the log evidence as a tensor."""
        total, gradients = self.batched({key: eta.unsqueeze(0) for key, eta in natural.items()})
        return total[0], {key: gradient[0] for key, gradient in gradients.items()}

    def batched(self, natural: Natural) -> tuple[Tensor, dict[TieKey, Tensor]]:
        """The same at several parameter values.

        Args:
            natural: Natural parameters of the cells of all tied factors, ``(R, C, P)``.

        Returns:
            The log evidence ``(R,)`` and, for all tied factors, its gradient ``(R, C, P)``.
        """
        total, sums, counts, widths = self._swept(natural)
        prior_key, prior = self.prior
        gradients = {key: torch.zeros_like(eta) for key, eta in natural.items()}
        for (key, form), block in zip(self.data, sums.split(widths, 2), strict=True):
            joined = form.columns.joined(counts, block)
            gradients[key] = _scattered(gradients[key], form, joined)
        by_prior = counts.unsqueeze(1) @ prior.columns.matrix.T
        gradients[prior_key] = _scattered(gradients[prior_key], prior, by_prior)
        return total, gradients

    def counts(self, natural: Natural) -> Tensor:
        """The expected number of rows of each component, by their weights, ``(K,)``."""
        return self._swept({key: eta.unsqueeze(0) for key, eta in natural.items()})[2][0]

    def _swept(self, natural: Natural) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """One sweep: the log evidence, the statistics, the counts, and each form's features."""
        constant, lefts = self._parted(natural)
        left = lefts[0] if len(lefts) == 1 else torch.cat(lefts, 2)
        if len(self.rows) * max(left.shape[0] * left.shape[1], left.shape[2]) <= LARGE:
            found = sweep_at_once(self.rows, left, constant)
        else:
            swept = compiled_sweep if is_worth_compiled(self.rows, left) else sweep
            found = as_one_step(functools.partial(swept, self.rows), left, constant)
        return *found, [each.shape[2] for each in lefts]

    def _parted(self, natural: Natural) -> tuple[Tensor, list[Tensor]]:
        """What components begin with, ``(R, K)``, and for each form what its features count for."""
        prior_key, prior = self.prior
        constant, lefts = prior.log_prob(natural[prior_key]), []
        for key, form in self.data:
            eta = at_cells(natural[key], form.cells).flatten(2)
            added, left = form.columns.parted(eta)
            constant = constant if added is None else constant + added
            lefts.append(left)
        return constant, lefts

    @property
    def width(self) -> int:
        """The number of numbers that ``affine`` gives."""
        return self.prior[1].shape[0] * (1 + self.rows.features)

    @property
    def work(self) -> int:
        """The products of a sweep."""
        shape = torch.Size((self.prior[1].shape[0], self.rows.features))
        return work_of(len(self.rows), shape)

    def sampled(self, count: int) -> MixtureKernel:
        """The same of some of the rows, drawn at random, which count for all."""
        return dataclasses.replace(self, rows=self.rows.sampled(count))

    def affine(self, natural: Natural) -> Tensor:
        """Of each component what it begins with, then what features count for, ``(K, 1 + F)``."""
        constant, lefts = self._parted({key: eta.unsqueeze(0) for key, eta in natural.items()})
        return torch.cat([constant.unsqueeze(2), *lefts], 2)[0]

    def spread(self, affine: Tensor) -> Tensor:
        """How uncertain the rows leave what ``affine`` is multiplied by; see ``sweep.spread``."""
        return spread(self.rows, affine)


def _scattered(gradient: Tensor, form: ExponentialFactor, block: Tensor) -> Tensor:
    """With blocks ``(R, rows, cells * P)`` added to the cells they came from."""
    cells = form.cells
    each = block.reshape(len(block), cells.numel(), -1)
    return gradient.index_add(1, cells.reshape(-1), each)


def mixture_kernel(
    factors: Sequence[Factor],
    compiled: Mapping[str, tuple[TieKey, CompiledFactor]],
    latents: Sequence[str],
    row: str | None,
) -> MixtureKernel | None:
    """The kernel, or None if the model is not a plain mixture."""
    if len(latents) != 1 or row is None or len(factors) < 2:
        return None
    (latent,) = latents
    prior: Keyed | None = None
    data: list[Keyed] = []
    scale = factors[0].scale
    for factor in factors:
        if factor.name not in compiled or factor.plates != {row}:
            return None
        if not same_scale(factor.scale, scale):
            return None
        key, form = compiled[factor.name]
        if not isinstance(form, ExponentialFactor):
            return None  # rows with missing entries have natural parameters by pattern
        if factor.dims == (latent,) and prior is None and form.base is None:
            prior = (key, form)
        elif factor.dims == (latent, row) and form.cells.shape[0] == form.shape[0]:
            data.append((key, form))
        else:
            return None
    if prior is None or not data or (scale is not None and scale.dims != (row,)):
        return None
    bases = [form.base.reshape(-1) for _, form in data if form.base is not None]
    rows = Rows(
        tuple(form.columns for _, form in data),
        torch.stack(bases).sum(0) if bases else None,
        None if scale is None else scale.tensor,
    )
    return MixtureKernel(prior, tuple(data), rows)
