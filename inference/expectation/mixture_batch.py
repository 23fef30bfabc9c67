r"""The E-step of a plain mixture at several parameter values, in one sweep over the rows.

With ``R`` parameter values the natural parameters are stacked to ``(R K, P)``, so that one matrix
product with the statistics ``T (P, N)`` gives the log joint of all of them,

.. math:: G_r = A_r\,T + \log w_r, \qquad S_r = \operatorname{softmax}_k(G_r)\,T^\top,

where the softmax runs within each block of ``K`` rows. What one sweep reads and what it costs to
start are then shared by all values. The results are those of ``mixture.py``, to rounding.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ember.inference.expectation.mixture import CHUNK_BYTES, MixtureKernel
from ember.inference.factors import FormFactor

__all__ = ["batched_expectations"]


def batched_expectations(
    kernel: MixtureKernel, natural: Mapping[Any, Tensor]
) -> tuple[Tensor, dict[Any, Tensor]]:
    """Log evidence and expected statistics at every parameter value.

    Args:
        kernel: The mixture, compiled.
        natural: Natural parameters of each group's cells, ``(R, C, P)``.

    Returns:
        The log evidence ``(R,)`` and, for each group, the statistics ``(R, C, P)``.
    """
    prior_key, prior = kernel.prior
    log_weights = _prior_log_probs(prior, natural[prior_key])
    blocks = [natural[key][:, form.cells].flatten(2) for key, form in kernel.data]
    total, sums, counts = _sweep(kernel, torch.cat(blocks, 2), log_weights)
    statistics = {key: torch.zeros_like(eta) for key, eta in natural.items()}
    sizes = [block.shape[2] for block in blocks]
    for (key, form), block in zip(kernel.data, sums.split(sizes, 2), strict=True):
        _scatter(statistics[key], form, block)
    _scatter(statistics[prior_key], prior, counts.unsqueeze(1) @ prior.statistics.T)
    return total, statistics


def _prior_log_probs(prior: FormFactor, eta: Tensor) -> Tensor:
    """The log weights ``(R, K)`` of the components."""
    gathered = eta[:, prior.cells].flatten(2)
    return (gathered @ prior.statistics).flatten(1)


def _sweep(
    kernel: MixtureKernel, left: Tensor, log_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log evidence ``(R,)``, ``S`` of shape ``(R, K, P)`` and expected counts ``(R, K)``."""
    statistics = kernel.statistics
    features, rows = statistics.shape
    batch, components, _ = left.shape
    flat, log_weights = left.flatten(0, 1), log_weights.reshape(-1, 1)
    width = max(256, CHUNK_BYTES // (8 * max(features, len(flat))))
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
        if kernel.base is not None:
            row += kernel.base[start : start + width]
        if kernel.weights is not None:
            weight = kernel.weights[start : start + width]
            row *= weight
        total += row.sum(1)
        share = evidence.reciprocal_() if weight is None else weight / evidence
        joint.mul_(share.unsqueeze(1))
        sums.addmm_(stacked, chunk.T)
        counts += stacked.sum(1)
    return total, sums.view(left.shape), counts.view(batch, components)


def _scatter(statistics: Tensor, form: FormFactor, block: Tensor) -> None:
    """Adds blocks ``(R, rows, cells * P)`` to the cells they came from."""
    cells = form.cells
    statistics.index_add_(1, cells.reshape(-1), block.reshape(len(block), cells.numel(), -1))
