r"""Multivariate normals with a matrix known but for a factor: breeding values, Gaussian processes.

With a known location :math:`m` and precision :math:`r\,Q`,

.. math:: \log p(x) = \tfrac n2 \log r - r\,\tfrac12 (x - m)^\top Q (x - m)
    + \tfrac12 \log\det Q - \tfrac n2 \log 2\pi,

which is the family ``Rate``. Of a covariance :math:`v A` the rate is :math:`1/v` and
:math:`Q = A^{-1}`; of a factor :math:`s L` it is :math:`1/s^2`. Entries of :math:`x` that are
missing are integrated out: the covariance of those that are there is a part of that of all.

Reference: Henderson (1984), *Applications of Linear Models in Animal Breeding*, University of
Guelph; Rasmussen & Williams (2006), *Gaussian Processes for Machine Learning*, MIT Press.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.families.exponential_form import ExponentialForm, rate_parameter
from ember.inference.families.links import SCALE_TRIL
from ember.inference.families.multivariate_normal import LINKS
from ember.inference.families.rates import Rate
from ember.inference.numerics.log_space import LOG_2PI, safe_log
from ember.inference.numerics.observed_density import row_patterns
from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.map import ParameterMap
from ember.inference.parameters.scaled_matrix import ScaledMatrix

__all__ = ["ScaledStatistics", "scaled_normal_form"]


POWERS = {"precision_matrix": 1.0, "covariance_matrix": -1.0, "scale_tril": -2.0}


@dataclass(frozen=True, eq=False)
class ScaledStatistics:
    """``(n / 2, c (x - m)'Q(x - m) / 2)`` of vectors with precision ``r c Q``.

    Attributes:
        location: ``m``, ``(*batch, n)``.
        factor: The known number ``c``, over the batch.
        root: The Cholesky factor of ``Q``, or of its inverse, ``(*batch, n, n)``.
        is_precision: Whether it is that of ``Q``.
    """

    location: Tensor
    factor: Tensor
    root: Tensor
    is_precision: bool

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        missing = x.isnan()
        if bool(missing.any()):
            return self._of_parts(x, missing)
        white = self._white(x - self.location)
        half = self.factor * 0.5 * white.square().sum(-1)
        return self._put_together(half, torch.full_like(half, x.shape[-1]), self.log_det)

    @functools.cached_property
    def log_det(self) -> Tensor:
        """``log det Q``, over the batch."""
        logs = safe_log(self.root.diagonal(dim1=-2, dim2=-1)).sum(-1)
        return 2.0 * logs if self.is_precision else -2.0 * logs

    @functools.cached_property
    def precisions(self) -> Tensor:
        """``Q``, ``(*batch, n, n)``."""
        return self.root @ self.root.mT if self.is_precision else torch.cholesky_inverse(self.root)

    def of_shown(self, shown: Tensor) -> "ScaledStatistics":
        """Those of some entries of all vectors, the others integrated out.

        Args:
            shown: The numbers of these entries.
        """
        if self.is_precision:
            covariance = torch.cholesky_inverse(self.root)
        else:
            covariance = self.root @ self.root.mT
        part = covariance[..., shown, :][..., shown]
        root: Tensor = torch.linalg.cholesky(part)
        return ScaledStatistics(self.location[..., shown], self.factor, root, False)

    def _of_parts(self, x: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        """The statistics where entries are missing, one pattern of them after the other."""
        rows = x.reshape(-1, x.shape[-1])
        patterns, index = row_patterns(missing.reshape(rows.shape))
        shape = broadcast_shapes(
            x.shape[:-1], self.location.shape[:-1], self.factor.shape, self.root.shape[:-2]
        )
        index = index.reshape(x.shape[:-1]).expand(shape)
        statistics, base = x.new_zeros(*shape, 2), x.new_zeros(shape)
        for i, hidden in enumerate(patterns):
            shown = (~hidden).nonzero().squeeze(-1)
            if not len(shown):
                continue
            found, constant = self.of_shown(shown)(x[..., shown].nan_to_num(), 0.0)
            own = index == i
            statistics = torch.where(own.unsqueeze(-1), found, statistics)
            base = torch.where(own, constant, base)
        return statistics, base

    def _put_together(self, half: Tensor, count: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        base = 0.5 * (count * (safe_log(self.factor) - LOG_2PI) + log_det)
        return torch.stack([0.5 * count, half], -1), base

    def _white(self, x: Tensor) -> Tensor:
        """Vectors whose squares add up to ``x'Qx``."""
        root, white = self.root, x
        if self.is_precision:
            white = x @ root if root.dim() == 2 else (x.unsqueeze(-2) @ root).squeeze(-2)
            return white
        if root.dim() == 2:  # one factor of all vectors: they are the columns of one system
            flat = x.reshape(-1, x.shape[-1]).mT
            solved: Tensor = torch.linalg.solve_triangular(root, flat, upper=False)
            return solved.mT.reshape(x.shape)
        shape = broadcast_shapes(root.shape[:-2], x.shape[:-1])
        columns = x.unsqueeze(-1).expand(*shape, x.shape[-1], 1)
        solved = torch.linalg.solve_triangular(root, columns, upper=False)
        return solved.squeeze(-1)


def scaled_normal_form(
    matrix: ScaledMatrix, argument: str, location: ParameterMap
) -> ExponentialForm | str:
    """The form of a multivariate normal with a scaled known matrix, or why it has none.

    Args:
        matrix: The map of its matrix.
        argument: What the matrix is: ``covariance_matrix``, ``precision_matrix``, ``scale_tril``.
        location: The map of its location.
    """
    if not isinstance(location, ArgumentMap) or location.table is not None:
        return "the matrix is known but for a factor, and the location is not known"
    bound = rate_parameter(matrix.scale, POWERS[argument])
    if isinstance(bound, str):
        return bound
    parameter, index, factor = bound
    link = LINKS[argument]
    root = matrix.matrix if link is SCALE_TRIL else torch.linalg.cholesky_ex(matrix.matrix)[0]
    while root.dim() > 2 and len(root) == 1:
        root = root[0]
    statistics = ScaledStatistics(location.offset, factor, root, link.is_precision)
    return ExponentialForm(Rate(), (parameter,), (index,), statistics, 1)
