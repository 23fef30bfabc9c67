"""The multivariate normal distribution: a mean vector and a precision matrix."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.exponential_form import (
    ExponentialForm,
    FamilyParameter,
    Maps,
    Names,
    data_of,
    exponential_form,
)
from ember.inference.families.family import Family
from ember.inference.numerics.log_space import LOG_2PI, safe_log
from ember.inference.numerics.shapes import compact
from ember.inference.numerics.symmetric import log_diagonal, vech_indices, vech_positions

__all__ = ["MultivariateNormal"]


class MultivariateNormal(Family):
    """``T = (1, x, vech(x x'))``: location vector ``m`` and precision matrix ``P``."""

    kinds = ("vector", "matrix")

    def natural_parameters(self, *values: Tensor) -> Tensor:
        m, precision = values
        dim = m.shape[-1]
        log_det = 2.0 * log_diagonal(precision).sum(-1)
        linear = (precision @ m.unsqueeze(-1)).squeeze(-1)
        constant = 0.5 * (log_det - (m * linear).sum(-1) - dim * LOG_2PI)
        rows, columns, halves = vech_indices(dim)
        quadratic = halves * precision[..., rows, columns]
        shape = torch.broadcast_shapes(constant.shape, quadratic.shape[:-1])
        return torch.cat(
            [
                constant.expand(shape).unsqueeze(-1),
                linear.expand(*shape, dim),
                quadratic.expand(*shape, -1),
            ],
            -1,
        )

    def contribution(
        self, position: int, statistics: Tensor, values: tuple[Tensor, ...]
    ) -> list[Tensor]:
        m, precision = values
        n, s, q = self.moments(statistics, m.shape[-1])
        if position == 0:
            return [(precision @ s.unsqueeze(-1)).squeeze(-1), n[:, None, None] * precision]
        cross = s.unsqueeze(-1) * m.unsqueeze(-2)
        scatter = q - cross - cross.mT + n[:, None, None] * m.unsqueeze(-1) * m.unsqueeze(-2)
        return [n, scatter]

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        dim = by.shape[-1]
        n, s, q = self.moments(statistics, dim)
        cross = s.unsqueeze(-1) * by.unsqueeze(-2)
        square = by.unsqueeze(-1) * by.unsqueeze(-2)
        moved = q + cross + cross.mT + n[:, None, None] * square
        rows, columns, _ = vech_indices(dim)
        return torch.cat([n[:, None], s + n[:, None] * by, moved[:, rows, columns]], -1)

    @staticmethod
    def statistics(x: Tensor) -> Tensor:
        """``T(x)`` of shape ``(..., P)`` with ``P = 1 + D + D(D+1)/2``."""
        rows, columns, _ = vech_indices(x.shape[-1])
        return torch.cat([torch.ones_like(x[..., :1]), x, x[..., rows] * x[..., columns]], -1)

    @staticmethod
    def moments(statistics: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Count ``(C,)``, sum ``(C, D)`` and sum of squares ``(C, D, D)``."""
        q = statistics[..., 1 + dim + vech_positions(dim)]
        return statistics[..., 0], statistics[..., 1 : 1 + dim], q


@exponential_form(dist.MultivariateNormal)
def _multivariate_normal(base: Any, maps: Maps, names: Names) -> ExponentialForm | str:
    m, matrix, matrix_name = maps["loc"], maps["matrix"], names["matrix"]
    link = {"precision_matrix": "identity", "covariance_matrix": "inverse", "scale_tril": "outer"}
    if matrix.table is None:
        flat = matrix.offset.reshape(-1, *matrix.offset.shape[-2:])
        index = torch.arange(len(flat)).reshape(matrix.offset.shape[:-2])
        p_parameter = FamilyParameter("matrix", None, link[matrix_name], 1.0, flat)
        c = torch.ones(())
    else:
        c = matrix.coefficient
        if not bool((c > 0).all()):
            return "the matrix argument mixes parameters with constants"
        p_parameter = FamilyParameter(
            "matrix", matrix.table, link[matrix_name], 1.0, torch.zeros(0)
        )
        c = {"precision_matrix": c, "covariance_matrix": 1.0 / c, "scale_tril": c**-2.0}[
            matrix_name
        ]
        c = compact(c)
        index = matrix.index
    dim = base.loc.shape[-1]
    if m.table is None:
        m_parameter = FamilyParameter("vector", None, "constant", 1.0, torch.zeros(1, dim))
        m_index, b = torch.zeros(m.offset.shape[:-1], dtype=torch.long), m.offset
    elif not bool((m.coefficient == 1.0).all()):
        return "the location mixes parameters with constants or multiplies them"
    else:
        m_parameter = FamilyParameter("vector", m.table, "identity", 1.0, torch.zeros(0))
        m_index, b = m.index, torch.zeros(())
    if m_parameter.table is not None and not bool((c == 1.0).all()):
        return "the matrix argument multiplies its parameter by a number"

    def data(x: Tensor) -> tuple[Tensor, Any]:
        return x - b, None

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        z = data(x)[0] - reference
        if bool((c == 1.0).all()):
            return MultivariateNormal.statistics(z), None
        z = z * c.sqrt().unsqueeze(-1)
        return MultivariateNormal.statistics(z), (0.5 * dim * safe_log(c)).expand(z.shape[:-1])

    reference = data_of(data) if m_parameter.table is not None else None
    return ExponentialForm(
        MultivariateNormal(), (m_parameter, p_parameter), (m_index, index), statistics, 1, reference
    )
