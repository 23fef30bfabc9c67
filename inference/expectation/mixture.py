r"""The E-step of a plain mixture, in one sweep over the rows.

Where a model has one latent in one plate and every factor is a product of natural parameters and
sufficient statistics, the log joint of all components and rows is a single matrix product,

.. math:: G = A\,T + \log w, \qquad S = R\,T^\top, \qquad R = \operatorname{softmax}_k(G),

with the factors' natural parameters side by side in ``A (K, P)`` and their statistics stacked in
``T (P, N)``. Taken in chunks of columns that fit the cache, nothing of size ``K N`` is ever
stored and no graph is recorded. The result is that of the general contraction and its gradient,
to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.expectation.enumeration import Factor, same_scale
from ember.inference.factors import FormFactor

__all__ = ["MixtureKernel", "mixture_kernel"]

Forms = Mapping[str, tuple[tuple[Any, ...], Any]]  # a FormFactor, or another compiled form
CHUNK_BYTES = 2_000_000  # of statistics; the chunk and its log joint then stay in the cache


@dataclass(frozen=True)
class MixtureKernel:
    """Compiled once for a plan; see ``mixture_kernel``."""

    prior: tuple[Any, FormFactor]
    data: tuple[tuple[Any, FormFactor], ...]
    statistics: Tensor
    base: Tensor | None
    weights: Tensor | None
    components: int

    def __call__(self, natural: Mapping[Any, Tensor]) -> tuple[float, dict[Any, Tensor]]:
        """Log evidence, and its gradient with respect to the natural parameters of each group."""
        prior_key, prior = self.prior
        log_weights = prior.log_prob(natural[prior_key]).reshape(-1, 1)
        blocks = [natural[key][form.cells].flatten(1) for key, form in self.data]
        sizes = [block.shape[1] for block in blocks]
        left = torch.cat(blocks, 1)
        total, sums, counts = self._sweep(left, log_weights)
        gradients = {key: torch.zeros_like(eta) for key, eta in natural.items()}
        for (key, form), block in zip(self.data, sums.split(sizes, 1), strict=True):
            _scatter(gradients[key], form, block)
        _scatter(gradients[prior_key], prior, counts.reshape(1, -1) @ prior.statistics.T)
        return total, gradients

    def _sweep(self, left: Tensor, log_weights: Tensor) -> tuple[float, Tensor, Tensor]:
        """Log evidence, ``S`` of shape ``(K, P)`` and expected counts ``(K,)``."""
        statistics = self.statistics
        features, rows = statistics.shape
        width = max(256, CHUNK_BYTES // (8 * features))
        sums, counts = torch.zeros_like(left), left.new_zeros(self.components)
        total = 0.0
        for start in range(0, rows, width):
            chunk = statistics[:, start : start + width]
            joint = torch.addmm(log_weights, left, chunk)
            top = joint.amax(0)
            joint.sub_(top).exp_()
            evidence = joint.sum(0)
            row = evidence.log().add_(top)
            weight: Tensor | None = None
            if self.base is not None:
                row += self.base[start : start + width]
            if self.weights is not None:
                weight = self.weights[start : start + width]
                row *= weight
            total += float(row.sum())
            joint.mul_(evidence.reciprocal_() if weight is None else weight / evidence)
            sums.addmm_(joint, chunk.T)
            counts += joint.sum(1)
        return total, sums, counts


def _scatter(gradient: Tensor, form: FormFactor, block: Tensor) -> None:
    """Adds a block ``(rows, cells * P)`` to the cells it came from."""
    cells = form.cells
    gradient.index_add_(0, cells.reshape(-1), block.reshape(cells.numel(), -1))


def mixture_kernel(
    factors: Sequence[Factor], forms: Forms, latents: Sequence[str], row: str | None
) -> MixtureKernel | None:
    """The kernel, or None if the model is not a plain mixture."""
    if len(latents) != 1 or row is None or len(factors) < 2:
        return None
    (latent,) = latents
    prior: tuple[Any, FormFactor] | None = None
    data: list[tuple[Any, FormFactor]] = []
    scale = factors[0].scale
    for factor in factors:
        if factor.name not in forms or factor.plates != {row}:
            return None
        if not same_scale(factor.scale, scale):
            return None
        key, form = forms[factor.name]
        if not isinstance(form, FormFactor) or not form.is_product:
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
        prior[1].shape[0],
    )
