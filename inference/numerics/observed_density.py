"""The density of the observed entries of rows, from a distribution object: the general way."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.gamma_ratios import exact_log_prob
from ember.inference.numerics.log_space import safe_log
from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims

__all__ = ["observed_log_prob", "observed_parts", "row_patterns"]


def observed_log_prob(fn: Distribution, value: Tensor) -> Tensor:
    """The log density of the observed entries of ``value``; NaN stands for a missing entry.

    For distributions without natural parameters to work with: the covariance of the observed
    entries is factorised for every row and pattern that differ.
    """
    if not isinstance(fn, dist.MultivariateNormal) or not bool(value.isnan().any()):
        return exact_log_prob(fn, value)
    constant, _, square = observed_parts(fn.loc, fn.covariance_matrix, value)
    return constant - square


def row_patterns(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The patterns ``(G, D)`` among rows ``(N, D)`` of hidden entries, and each row's, ``(N,)``.

    Rows are told apart by numbers, 32 columns at a time: sorting them as rows takes far longer.
    """
    index = torch.zeros(len(hidden), dtype=torch.long)
    for block in hidden.split(32, -1):
        bits = (block.long() << torch.arange(block.shape[-1])).sum(-1)
        index = torch.unique((index << 32) + bits, return_inverse=True)[1]
    first = torch.zeros(int(index.max()) + 1, dtype=torch.long)
    first[index] = torch.arange(len(index))
    return hidden[first], index


def observed_parts(loc: Tensor, covariance: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the log density of normal rows, NaN where missing, what makes it up.

    Returns:
        The constant, the number of observed entries, and half the Mahalanobis square.
    """
    hidden = value.isnan()
    dim, batch = value.shape[-1], value.shape[:-1]
    matrices = prepend_dims(covariance, max(covariance.dim(), len(batch) + 2))
    rows = prepend_dims(hidden, matrices.dim() - 1).shape[:-1]
    if any(a > 1 and b > 1 for a, b in zip(matrices.shape[:-2], rows, strict=True)):
        factor = _padded_factor(matrices, hidden)
    else:
        # Rows share their matrix: factorise by matrix and pattern, then spread over the rows.
        patterns, index = row_patterns(hidden.reshape(-1, dim))
        cells = torch.arange(matrices.shape[:-2].numel()).reshape(matrices.shape[:-2])
        factor = _padded_factor(matrices.reshape(-1, 1, dim, dim), patterns)
        factor = factor[cells, index.reshape(batch)]
    residual = torch.where(hidden, 0.0, torch.where(hidden, 0.0, value) - loc)
    shape = broadcast_shapes(factor.shape[:-1], residual.shape)
    white = torch.linalg.solve_triangular(
        factor, residual.expand(shape).unsqueeze(-1), upper=False
    ).squeeze(-1)
    log_det = safe_log(factor.diagonal(dim1=-2, dim2=-1)).sum(-1)
    shown = (~hidden).sum(-1).to(white.dtype)
    constant = -0.5 * math.log(2.0 * math.pi) * shown - log_det
    return constant, shown, 0.5 * white.square().sum(-1)


def _padded_factor(covariance: Tensor, hidden: Tensor) -> Tensor:
    """The Cholesky factor of the observed block, the identity at hidden entries."""
    shown = (~hidden).to(covariance.dtype)
    both = shown.unsqueeze(-1) * shown.unsqueeze(-2)
    factor: Tensor = torch.linalg.cholesky_ex(covariance * both + torch.diag_embed(1.0 - shown))[0]
    return factor
