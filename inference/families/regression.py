"""Normal regression in exponential-family form: weighted least squares for its coefficients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.families.exponential_form import (
    ExponentialForm,
    FamilyParameter,
    rate_parameter,
)
from ember.inference.families.family import Family, Values
from ember.inference.families.kinds import COEFFICIENTS, RATE
from ember.inference.numerics.design import Frame
from ember.inference.numerics.log_space import LOG_2PI, safe_log
from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.numerics.symmetric import unvech, vech, vech_indices
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.argument_map import ArgumentMap

__all__ = ["Regression", "regression"]


def regression(
    location: AffineMap, scale: ArgumentMap, latent_features: tuple[int, ...] = ()
) -> ExponentialForm | str:
    """The form of ``Normal(x @ beta + offset, scale)``, or the reason why there is none.

    A scale that varies by known factors weighs the rows, as in weighted least squares; one that is
    known altogether is such a factor of a scale of one. Features may be latent: then those of the
    location are zero in their places.
    """
    bound = rate_parameter(scale, -2.0)
    if isinstance(bound, str):
        return bound
    rate, rate_index, factor = bound
    if rate.table is None:
        factor = factor * rate.constants[rate_index]
        rate = FamilyParameter(RATE, None, constants=torch.ones(1))
        rate_index = torch.zeros_like(rate_index[(slice(0, 1),) * rate_index.dim()])
    coefficients = FamilyParameter(COEFFICIENTS, location.table)
    data = RegressionData(location.features, location.offset, factor)
    indices = location.index, rate_index
    return ExponentialForm(
        Regression(),
        (coefficients, rate),
        indices,
        data.statistics,
        design=data.rows,
        latent_features=latent_features,
    )


@dataclass(frozen=True, eq=False)
class RegressionData:
    """Features ``(*batch, F)``, what is subtracted from responses, and their known weights."""

    features: Tensor
    offset: Tensor
    weights: Tensor

    def rows(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, responses and weights of every row."""
        x, residual, weights = self.features, y - self.offset, self.weights
        shape = broadcast_shapes(residual.shape, x.shape[:-1], weights.shape)
        return x.expand(*shape, x.shape[-1]), residual.expand(shape), weights.expand(shape)

    def statistics(
        self, y: Tensor, reference: Frame | Tensor | float, latent: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Products of features and responses, in the coordinates of a frame.

        Args:
            y: Responses.
            reference: The frame.
            latent: Features that are latent, ``(*batch, F)``, zero in the places of the others.
        """
        x, residual, weights = self.rows(y)
        if isinstance(reference, Frame):
            x = reference.features(self.features)
            residual = residual - x @ reference.line
        if latent is not None:  # a frame leaves them as they are
            x = x + latent
            residual = residual.expand(broadcast_shapes(residual.shape, x.shape[:-1]))
        x = x.expand(*residual.shape, x.shape[-1])
        both = torch.cat([x, residual.unsqueeze(-1)], -1) * weights.sqrt().unsqueeze(-1)
        base = None if bool((self.weights == 1.0).all()) else 0.5 * safe_log(weights)
        return Regression.statistics(both), base


class Regression(Family):
    """``T = (1, vech(u u'))`` with ``u = (x, y)``: coefficients ``b`` and precision ``r`` of ``y``.

    Both are in the coordinates of a frame (``numerics/design.py``), in which their products lose no
    digits.

    The log density is ``(log r - r (y - x'b)^2) / 2`` up to a constant.
    """

    kinds = (COEFFICIENTS, RATE)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        b, r = values
        _, _, halves = vech_indices(b.shape[-1] + 1, b.device)
        w = torch.cat([-b, torch.ones_like(b[..., :1])], -1)
        quadratic = halves * vech((r.unsqueeze(-1) * w).unsqueeze(-1) * w.unsqueeze(-2))
        constant = (0.5 * (safe_log(r) - LOG_2PI)).unsqueeze(-1)
        return torch.cat([constant.expand_as(quadratic[..., :1]), quadratic], -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        b = values[0]
        squares = self.products(statistics, b.shape[-1] + 1)
        if position == 0:
            weight = values[1][:, None, None]
            return [(weight * squares)[:, :-1, -1], weight * squares[:, :-1, :-1]]
        w = torch.cat([-b, torch.ones_like(b[..., :1])], -1)
        residual = (w.unsqueeze(-2) @ squares @ w.unsqueeze(-1)).reshape(-1)
        return [0.5 * statistics[:, 0], 0.5 * residual.clamp_min(0.0)]

    @staticmethod
    def statistics(u: Tensor) -> Tensor:
        """``T`` of shape ``(..., P)`` with ``P = 1 + (F + 1)(F + 2) / 2``."""
        rows, columns, _ = vech_indices(u.shape[-1], u.device)
        return torch.cat([torch.ones_like(u[..., :1]), u[..., rows] * u[..., columns]], -1)

    @staticmethod
    def products(statistics: Tensor, dim: int) -> Tensor:
        """The sum of ``u u'`` of each cell, ``(C, F + 1, F + 1)``."""
        return unvech(statistics[..., 1:], dim)

    @staticmethod
    def turned(statistics: Tensor, turn: Tensor) -> Tensor:
        """Statistics of ``turn @ u`` from those of ``u``, with a matrix for each cell."""
        dim = turn.shape[-1]
        rows, columns, _ = vech_indices(dim, statistics.device)
        squares = turn @ Regression.products(statistics, dim) @ turn.mT
        return torch.cat([statistics[..., :1], squares[..., rows, columns]], -1)
