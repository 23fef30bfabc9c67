"""The multivariate normal distribution by its precision matrix, which is never inverted."""

import functools
import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.multivariate_normal import _precision_to_scale_tril

from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.numerics.symmetric import times

__all__ = ["PrecisionNormal"]


class PrecisionNormal(dist.MultivariateNormal):
    """``MultivariateNormal(loc, precision_matrix=...)``, whose density takes one Cholesky factor.

    Torch's own inverts a factor of the precision when the distribution is made, whatever for.

    Args:
        loc: The mean, ``(*batch, D)``.
        precision_matrix: The precision, ``(*batch, D, D)``.
        validate_args: Whether samples are checked.

    Raises:
        RuntimeError: If a precision is not positive definite, once that matters.
    """

    def __init__(
        self, loc: Tensor, precision_matrix: Tensor, validate_args: bool | None = None
    ) -> None:
        batch, known = loc.shape[:-1], precision_matrix.shape[:-2]
        self._precision = precision_matrix
        if batch != known:
            batch = broadcast_shapes(batch, known)
            precision_matrix = precision_matrix.expand(*batch, -1, -1)
            loc = loc.expand(*batch, -1)
        self.precision_matrix, self.loc = precision_matrix, loc
        Distribution.__init__(self, batch, loc.shape[-1:], validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "PrecisionNormal":
        """The same distribution for more rows."""
        loc = self.loc.expand(*batch_shape, -1)
        return PrecisionNormal(loc, self._precision, validate_args=False)

    @functools.cached_property
    def _unbroadcasted_scale_tril(self) -> Tensor:  # type: ignore[override] # torch reads it
        factor: Tensor = _precision_to_scale_tril(self._precision)
        return factor

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        factor = torch.linalg.cholesky(self._precision)
        white = times(factor.mT, value - self.loc)
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = half_log_det - 0.5 * value.shape[-1] * math.log(2.0 * math.pi)
        log_prob: Tensor = constant - 0.5 * white.square().sum(-1)
        return log_prob
