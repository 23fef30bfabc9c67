"""Chains of Gaussian states, summed out inside one site, that take gaps and several series."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.gaussian import AffineNormal
from torch import Tensor

from ember.models.parts.checks import check_floats, check_tensor
from ember.models.parts.design import called
from ember.models.parts.factors import Columns

__all__ = ["GappyGaussianHMM", "check_series", "columns_of_series", "observe_chain"]


class GappyGaussianHMM(dist.GaussianHMM):
    """A `GaussianHMM` with independent noise whose data may hold NaN: those entries drop out."""

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of the observed entries of `value` (*batch, T, D)."""
        hidden = value.isnan()
        seen = self._obs
        if not isinstance(seen, AffineNormal) or not bool(hidden.any()):
            return torch.as_tensor(super().log_prob(value))  # type: ignore[no-untyped-call]
        # What no state moves and what lies at its location is a constant, which is taken off.
        shown = (~hidden).to(value.dtype)
        matrix = seen.matrix * shown.unsqueeze(-2)
        like = (*matrix.shape[:-2], matrix.shape[-1])
        blind = AffineNormal(matrix, seen.loc.expand(like), seen.scale.expand(like))
        filled = torch.where(hidden, seen.loc, value)
        whole: Any = super()
        chain = whole.expand(torch.broadcast_shapes(self.batch_shape, value.shape[:-2]))
        chain._obs = blind
        constant = (1 - shown) * (seen.scale.log() + 0.5 * math.log(2 * math.pi))
        total = dist.GaussianHMM.log_prob(chain, filled)
        return torch.as_tensor(total + constant.sum((-1, -2)))


def check_series(y: object) -> Tensor:
    """Return one series (T, D), or several (N, T, D) side by side, NaN where missing."""
    with called("y"):
        y = check_tensor(y, {2: "(T, D)", 3: "(N, T, D)"}, "a single series is y.unsqueeze(-1)")
        check_floats(y, gaps=True)
    return y


def columns_of_series(y: Tensor, given: bool) -> Columns:
    """The mean and the variance of the columns of all steps of all series."""
    with called("y"):
        rows = y.reshape(-1, y.shape[-1])
        return Columns.of(rows[~rows.isnan().all(-1)], None, given)


def observe_chain(
    y: Tensor, transition: Tensor, loadings: Tensor, locs: Tensor, uniquenesses: Tensor
) -> None:
    """The statement of the data `y` of a chain whose steps have standard normal noise.

    Args:
        y: the data (T, D), or (N, T, D).
        transition: what the states of a step are multiplied by, from the left (q, q).
        loadings: what multiplies the states in the data (D, q).
        locs: the locations of the data (D,).
        uniquenesses: the variances of their noise (D,).
    """
    zeros = y.new_zeros(transition.shape[-1])
    standard = dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)
    kind: Any = GappyGaussianHMM if bool(y.isnan().any()) else dist.GaussianHMM
    chain = kind(
        standard,
        transition.mT.unsqueeze(-3),  # Pyro multiplies rows from the right
        standard,
        loadings.mT.unsqueeze(-3),
        dist.Normal(locs.unsqueeze(-2), uniquenesses.sqrt().unsqueeze(-2)).to_event(1),
        duration=y.shape[-2],
    )
    plate: AbstractContextManager[object] = nullcontext()
    if y.dim() == 3:
        plate = pyro.plate("series", len(y))
    with plate:
        pyro.sample("y", chain, obs=y)
