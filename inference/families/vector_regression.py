r"""Multivariate normal regression: coefficients of all entries jointly, and a precision matrix.

.. math:: y \sim N(B x, P^{-1}), \qquad \log p = \tfrac12 \log\det P
    - \tfrac12 (y - B x)^\top P\, (y - B x) - \tfrac D2 \log 2\pi

Entries of :math:`B` may be known to be zero, or shared. Given the precision, those that are free
solve one weighted least-squares problem; without zeros and sharing that is
:math:`B = S_{yx} S_{xx}^{-1}`, whatever the precision. The features may be latent, as the state of
a system one step before: then the products are completed by their moments.

Reference: Zellner (1962), *An efficient method of estimating seemingly unrelated regressions*, JASA
57, 348-368; Shumway & Stoffer (1982), *An approach to time series smoothing and forecasting using
the EM algorithm*, Journal of Time Series Analysis 3, 253-264.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.families.exponential_form import ExponentialForm, FamilyParameter
from ember.inference.families.family import Family, Values
from ember.inference.families.kinds import COEFFICIENTS, MATRIX
from ember.inference.families.multivariate_normal import matrix_parameter
from ember.inference.numerics.log_space import LOG_2PI
from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.numerics.symmetric import log_diagonal, vech_indices, vech_positions
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.vector_map import Terms, VectorMap

__all__ = ["VectorRegression", "vector_regression"]


@dataclass(frozen=True)
class VectorRegression(Family):
    """``T = (1, vech(u u'))`` with ``u = (x, y)``: coefficients ``b`` of ``B``, precision ``P``.

    Attributes:
        terms: Where the coefficients stand in ``B``.
    """

    terms: Terms
    kinds = (COEFFICIENTS, MATRIX)

    @property
    def name(self) -> str:
        return f"{super().name} {self.terms}"

    def natural_parameters(self, *values: Tensor) -> Tensor:
        b, precision = values
        size = precision.shape[-1]
        w = self._residual(b)
        quadratic = w.mT @ precision @ w
        rows, columns, halves = vech_indices(quadratic.shape[-1], b.device)
        constant = log_diagonal(precision).sum(-1) - 0.5 * size * LOG_2PI
        constant = constant.expand(quadratic.shape[:-2]).unsqueeze(-1)
        return torch.cat([constant, halves * quadratic[..., rows, columns]], -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        size, width = self.terms.shape
        squares = statistics[..., 1 + vech_positions(width + size, statistics.device)]
        if position == 0:
            precision = values[1]
            rows = torch.tensor(self.terms.rows, device=statistics.device)
            columns = torch.tensor(self.terms.columns, device=statistics.device)
            of_rows = precision[:, rows]
            linear = (of_rows * squares[:, columns, width:]).sum(-1)
            return [linear, of_rows[:, :, rows] * squares[:, columns][:, :, columns]]
        w = self._residual(values[0])
        return [statistics[:, 0], w @ squares @ w.mT]

    def _residual(self, b: Tensor) -> Tensor:
        """``w`` with ``w u = y - B x``, ``(..., D, F + D)``."""
        matrix = self.terms.matrix(b)
        size = matrix.shape[-2]
        one = torch.eye(size, dtype=b.dtype, device=b.device)
        return torch.cat([-matrix, one.expand(*matrix.shape[:-2], size, size)], -1)

    @staticmethod
    def statistics(u: Tensor) -> Tensor:
        """``T`` of shape ``(..., P)`` with ``P = 1 + (F + D)(F + D + 1) / 2``."""
        rows, columns, _ = vech_indices(u.shape[-1], u.device)
        return torch.cat([torch.ones_like(u[..., :1]), u[..., rows] * u[..., columns]], -1)


@dataclass(frozen=True, eq=False)
class VectorRegressionData:
    """Features ``(*batch, F)`` and what is subtracted from responses, ``(*batch, D)``."""

    features: Tensor
    offset: Tensor

    def __call__(
        self, y: Tensor, reference: Tensor | float, latent: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Products of features and responses.

        Args:
            y: Responses.
            reference: Not used: coefficients are measured from zero.
            latent: Features that are latent, ``(*batch, F)``, zero in the places of the others.
        """
        x, residual = self.features, y - self.offset
        x = x if latent is None else x + latent
        shape = broadcast_shapes(residual.shape[:-1], x.shape[:-1])
        both = [part.expand(*shape, part.shape[-1]) for part in (x, residual)]
        return VectorRegression.statistics(torch.cat(both, -1)), None


def vector_regression(
    location: VectorMap, matrix: ArgumentMap, argument: str, latent_features: tuple[int, ...]
) -> ExponentialForm | str:
    """The form of ``MultivariateNormal(B x + offset, matrix)``, or the reason why there is none.

    Args:
        location: The map of the location.
        matrix: That of the matrix.
        argument: What the matrix is: ``covariance_matrix``, ``precision_matrix``, ``scale_tril``.
        latent_features: The places of features that are latent.
    """
    found = matrix_parameter(matrix, argument)
    if isinstance(found, str):
        return found
    precision, index, factor = found
    if not bool((factor == 1.0).all()):
        return "the matrix argument multiplies its parameter by a number"
    return ExponentialForm(
        VectorRegression(location.terms),
        (FamilyParameter(COEFFICIENTS, location.table), precision),
        (location.index, index),
        VectorRegressionData(location.features, location.offset),
        1,
        latent_features=latent_features,
    )
