r"""The E-step of a plain mixture, in one sweep over the rows.

Where a model has one latent in one plate and every factor is a product of natural parameters and
sufficient statistics, the log joint of all components and rows is a single matrix product,

.. math:: G = A\,T + \log w, \qquad S = R\,T^\top, \qquad R = \operatorname{softmax}_k(G),

with the factors' natural parameters side by side in ``A (K, P)`` and their statistics stacked in
``T (P, N)``. Taken in chunks of columns that fit the cache, nothing of size ``K N`` is ever
stored and no graph is recorded. The result is that of the general contraction and its gradient,
to rounding.

Several parameter values go through one sweep together: their ``A`` are stacked to ``(R K, P)``, and
the softmax runs within each block of ``K`` rows. What one sweep reads, and what it costs to start,
is then shared by all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.exponential import ExponentialFactor, at_cells
from ember.inference.factors.factor import CompiledFactor, Factor, same_scale
from ember.inference.factors.tied import TieKey

__all__ = ["MixtureKernel", "mixture_kernel"]


Keyed = tuple[TieKey, ExponentialFactor]
Natural = Mapping[TieKey, Tensor]
CHUNK_BYTES = 2_000_000  # of statistics; the chunk and its log joint then stay in the cache


@dataclass(frozen=True)
class MixtureKernel:
    """Compiled once for a plan; see ``mixture_kernel``."""

    prior: Keyed
    data: tuple[Keyed, ...]
    statistics: Tensor
    base: Tensor | None
    weights: Tensor | None

    def __call__(self, natural: Natural) -> tuple[float, dict[TieKey, Tensor]]:
        """Log evidence, and its gradient by the natural parameters of all tied factors."""
        total, gradients = self.batched({key: eta.unsqueeze(0) for key, eta in natural.items()})
        return float(total), {key: gradient[0] for key, gradient in gradients.items()}

    def batched(self, natural: Natural) -> tuple[Tensor, dict[TieKey, Tensor]]:
        """The same at several parameter values.

        Args:
            natural: Natural parameters of the cells of all tied factors, ``(R, C, P)``.

        Returns:
            The log evidence ``(R,)`` and, for all tied factors, its gradient ``(R, C, P)``.
        """
        prior_key, prior = self.prior
        log_weights = prior.log_prob(natural[prior_key])
        blocks = [at_cells(natural[key], form.cells).flatten(2) for key, form in self.data]
        sizes = [block.shape[2] for block in blocks]
        total, sums, counts = self._sweep(torch.cat(blocks, 2), log_weights)
        gradients = {key: torch.zeros_like(eta) for key, eta in natural.items()}
        for (key, form), block in zip(self.data, sums.split(sizes, 2), strict=True):
            _scatter(gradients[key], form, block)
        _scatter(gradients[prior_key], prior, counts.unsqueeze(1) @ prior.statistics.T)
        return total, gradients

    def _sweep(self, left: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log evidence ``(R,)``, ``S`` of shape ``(R, K, P)`` and expected counts ``(R, K)``."""
        statistics = self.statistics
        features, rows = statistics.shape
        batch, components, _ = left.shape
        flat, log_weights = left.flatten(0, 1), log_weights.reshape(-1, 1)
        # One value's log joint is small beside the statistics; that of many must fit as well.
        widest = features if batch == 1 else max(features, len(flat))
        width = max(256, CHUNK_BYTES // (8 * widest))
        sums, counts = torch.zeros_like(flat), left.new_zeros(len(flat))
        total = left.new_zeros(batch)
        for start in range(0, rows, width):
            chunk = statistics[:, start : start + width]
            stacked = torch.addmm(log_weights, flat, chunk)
            joint = stacked.view(batch, components, -1)
            top = joint.amax(1)
            joint.sub_(top.unsqueeze(1)).exp_()
            evidence = joint.sum(1)
            row = evidence.log().add_(top)
            weight: Tensor | None = None
            if self.base is not None:
                row += self.base[start : start + width]
            if self.weights is not None:
                weight = self.weights[start : start + width]
                row *= weight
            total += row.sum(1)
            share = evidence.reciprocal_() if weight is None else weight / evidence
            joint.mul_(share.unsqueeze(1))
            sums.addmm_(stacked, chunk.T)
            counts += stacked.sum(1)
        return total, sums.view(left.shape), counts.view(batch, components)


def _scatter(gradient: Tensor, form: ExponentialFactor, block: Tensor) -> None:
    """Adds blocks ``(R, rows, cells * P)`` to the cells they came from."""
    cells = form.cells
    gradient.index_add_(1, cells.reshape(-1), block.reshape(len(block), cells.numel(), -1))


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
        if not isinstance(form, ExponentialFactor) or not form.is_product:
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
    return MixtureKernel(
        prior,
        tuple(data),
        data[0][1].statistics if len(data) == 1 else torch.cat([f.statistics for _, f in data]),
        torch.stack(bases).sum(0) if bases else None,
        None if scale is None else scale.tensor,
    )
