"""The multivariate normal distribution: a mean vector and a precision matrix."""

import functools
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.exponential_form import (
    ExponentialForm,
    FamilyParameter,
    Maps,
    Names,
    exponential_form,
)
from ember.inference.families.family import Family, Values
from ember.inference.families.kinds import MATRIX, VECTOR
from ember.inference.families.links import COVARIANCE, PRECISION, SCALE_TRIL, MatrixLink
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.log_space import LOG_2PI, safe_log
from ember.inference.numerics.shapes import compact
from ember.inference.numerics.symmetric import log_diagonal, times, unvech, vech, vech_indices
from ember.inference.parameters.argument_map import ArgumentMap

__all__ = ["LINKS", "MultivariateNormal", "matrix_parameter"]


class MultivariateNormal(Family):
    """``T = (1, x, vech(x x'))``: location vector ``m`` and precision matrix ``P``."""

    kinds = (VECTOR, MATRIX)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        m, precision = values
        dim = m.shape[-1]
        half_log_det = log_diagonal(precision).sum(-1)
        linear = times(precision, m)
        constant = half_log_det - 0.5 * ((m * linear).sum(-1) + dim * LOG_2PI)
        _, _, halves = vech_indices(dim, m.device)
        parts = [constant.unsqueeze(-1), linear, halves * vech(precision)]
        if m.shape[:-1] != precision.shape[:-2]:
            parts = [part.expand(*constant.shape, -1) for part in parts]
        return torch.cat(parts, -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        if position == 0:
            precision = values[1]
            n, s = statistics[:, 0], statistics[:, 1 : 1 + precision.shape[-1]]
            return [times(precision, s), n.reshape(-1, 1, 1) * precision]
        m = values[0]
        n, s, q = self.moments(statistics, m.shape[-1])
        cross = s.unsqueeze(-1) * m.unsqueeze(-2)
        scatter = q - cross - cross.mT + (n.unsqueeze(-1) * m).unsqueeze(-1) * m.unsqueeze(-2)
        return [n, scatter]

    def scatter(self, statistics: Tensor) -> list[Tensor]:
        dim = round((2.0 * statistics.shape[-1] + 0.25) ** 0.5 - 1.5)  # P = (D + 1)(D + 2) / 2
        n, _, q = self.moments(statistics, dim)
        return [n, q]

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        dim = by.shape[-1]
        n, s, q = self.moments(statistics, dim)
        cross = s.unsqueeze(-1) * by.unsqueeze(-2)
        square = by.unsqueeze(-1) * by.unsqueeze(-2)
        moved = q + cross + cross.mT + n[:, None, None] * square
        return torch.cat([n[:, None], s + n[:, None] * by, vech(moved)], -1)

    @staticmethod
    def statistics(x: Tensor) -> Tensor:
        """``T(x)`` of shape ``(..., P)`` with ``P = 1 + D + D(D+1)/2``."""
        rows, columns, _ = vech_indices(x.shape[-1], x.device)
        return torch.cat([torch.ones_like(x[..., :1]), x, x[..., rows] * x[..., columns]], -1)

    @staticmethod
    def moments(statistics: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Count ``(C,)``, sum ``(C, D)`` and sum of squares ``(C, D, D)``."""
        q = unvech(statistics[..., 1 + dim :], dim)
        return statistics[..., 0], statistics[..., 1 : 1 + dim], q


@dataclass(frozen=True, eq=False)
class VectorStatistics:
    """Vectors less a known offset, times a root of the known factor of their precisions."""

    offset: Tensor
    factor: Tensor

    def values(self, x: Tensor) -> Tensor:
        """What the location is subtracted from."""
        return x - self.offset

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether the statistics are products of the centred data, without a base measure."""
        return bool((self.factor == 1.0).all())

    @functools.cached_property
    def _roots(self) -> Tensor:
        return self.factor.sqrt().unsqueeze(-1)

    @functools.cached_property
    def _log_roots(self) -> Tensor:
        return 0.5 * safe_log(self.factor)

    def centred(self, x: Tensor, reference: Tensor | float) -> Tensor:
        """The statistics of first order: the data about a reference, ``(..., D)``."""
        z = self.values(x) - reference
        return z if self.is_plain else z * self._roots

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        z = self.centred(x, reference)
        if self.is_plain:
            return MultivariateNormal.statistics(z), None
        return MultivariateNormal.statistics(z), (z.shape[-1] * self._log_roots).expand(
            z.shape[:-1]
        )


@exponential_form(dist.MultivariateNormal)
def _multivariate_normal(base: Distribution, maps: Maps, names: Names) -> ExponentialForm | str:
    matrix = matrix_parameter(maps["matrix"], names["matrix"])
    vector = _vector_parameter(maps["loc"])
    if isinstance(matrix, str):
        return matrix
    if isinstance(vector, str):
        return vector
    p, p_index, factor = matrix
    m, m_index, offset = vector
    if m.table is not None and not bool((factor == 1.0).all()):
        return "the matrix argument multiplies its parameter by a number"
    statistics = VectorStatistics(offset, factor)
    centred = None if m.table is None else statistics.values
    return ExponentialForm(MultivariateNormal(), (m, p), (m_index, p_index), statistics, 1, centred)


LINKS: dict[str, MatrixLink] = {
    "precision_matrix": PRECISION,
    "covariance_matrix": COVARIANCE,
    "scale_tril": SCALE_TRIL,
}


def matrix_parameter(
    found: ArgumentMap, argument: str
) -> tuple[FamilyParameter, Tensor, Tensor] | str:
    """Parameter, index and factor ``c`` with ``precision = c * P[index]``."""
    link = LINKS[argument]
    if found.table is None:
        flat = found.offset.reshape(-1, *found.offset.shape[-2:])
        index = torch.arange(len(flat)).reshape(found.offset.shape[:-2])
        return FamilyParameter(MATRIX, None, link, flat), index, torch.ones(())
    if not bool((found.coefficient > 0).all()):
        return "the matrix argument mixes parameters with constants"
    factor = compact(link.precision_factor(found.coefficient))
    return FamilyParameter(MATRIX, found.table, link), found.index, factor


def _vector_parameter(found: ArgumentMap) -> tuple[FamilyParameter, Tensor, Tensor] | str:
    """Parameter, index and offset ``b`` with ``location = m[index] + b``."""
    if found.table is None:
        known = FamilyParameter(VECTOR, None, constants=torch.zeros(1, found.offset.shape[-1]))
        return known, torch.zeros(found.offset.shape[:-1], dtype=torch.long), found.offset
    if not bool((found.coefficient == 1.0).all()):
        return "the location mixes parameters with constants or multiplies them"
    return FamilyParameter(VECTOR, found.table), found.index, torch.zeros(())
