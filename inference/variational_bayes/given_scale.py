"""A location and the precision of its data, which share a posterior."""

from dataclasses import dataclass, field
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.parameters.argument_map import rows_of
from ember.inference.variational_bayes.posterior import (
    Coefficients,
    Params,
    Posterior,
    PosteriorOf,
)

__all__ = ["GivenScale"]


@dataclass(frozen=True, eq=False)
class GivenScale(Posterior):
    """Of a location whose prior scales with that of the data: the mean, and a count.

    Given the precision ``r`` the location is normal with the precision ``count * r``.

    Attributes:
        scale: The posterior of the precision.
        rows: The row of the precision of each row of the location.
    """

    scale: PosteriorOf = field(kw_only=True)
    rows: Tensor = field(kw_only=True)
    size: ClassVar[str] = "count"
    family: ClassVar[str] = "normal"

    @property
    def description(self) -> str:
        return f"normal posterior given '{self.scale.name}'"

    @property
    def _dim(self) -> int:
        return self.parameter.shape[-1] if self.kind.event_dim else 1

    def at_unit_scale(self, params: Params) -> dict[str, Tensor]:
        """Parameters with the precision at one, where the coefficients are those of the count."""
        scale = self.scale.parameter
        unit = torch.ones_like(scale.start)
        if self.kind.event_dim:  # a precision matrix, as it is declared
            unit = torch.eye(self._dim).to(scale.start).expand(scale.shape)
        return {**params, scale.name: unit}  # a power of one is one

    def counts(self, precision: Tensor) -> Tensor:
        """The count of every row, from its second coefficient at unit scale."""
        return precision[..., 0, 0] if self.kind.event_dim else precision

    def of(self, coefficients: Coefficients) -> dict[str, Tensor]:
        h, precision = coefficients
        counts = self.counts(precision)
        return self._held(h / (counts.unsqueeze(-1) if self.kind.event_dim else counts), counts)

    def corrections(self, params: Params) -> Tensor:
        share = (self._dim / params[self.key]).reshape(-1, 1)
        none = share.new_zeros(len(share), self._dim**2)
        return torch.cat([none, share], -1)

    def divergence(self, params: Params, prior: Coefficients) -> Tensor:
        count, mean = params[self.key].reshape(-1), self.mean_rows(params)
        precision = self.scale.mean_rows(params)[self.rows]
        h, j = (self._prior_rows(c, i) for i, c in enumerate(prior))
        known = self.counts(j)
        if self.kind.event_dim:
            away = mean - h / known.unsqueeze(-1)
            square = (away * (precision @ away.unsqueeze(-1)).squeeze(-1)).sum(-1)
        else:
            square = precision * (mean - h / known).square()
        ratio = count / known
        wider = self._dim * (torch.log(ratio) - 1.0 + 1.0 / ratio)
        return 0.5 * (wider + known * square).sum()

    def _prior_rows(self, coefficient: Tensor, position: int) -> Tensor:
        event = self.parameter.shape[len(self.batch) :]
        if position == 1 and self.kind.event_dim:
            event = torch.Size([*event, self._dim])
        return rows_of(coefficient.expand(self.batch + event), len(event))

    def draw(self, params: Params, scales: Tensor) -> Tensor:
        """Draws of the location, one for each draw ``(n, *shape)`` of the parameter of scale."""
        rows = self.scale.link.forward(scales).reshape(len(scales), self.scale.batch.numel(), -1)
        precision = rows[:, self.rows]
        count = params[self.key].reshape(-1, 1)
        if not self.kind.event_dim:
            spread = (precision * count).rsqrt()
            noise = spread * torch.randn_like(precision)
        else:
            matrix = precision.reshape(*precision.shape[:2], self._dim, self._dim)
            factor = torch.linalg.cholesky(
                matrix
            ).mT  # P = U'U, and U z = noise has covariance P^-1
            white = torch.randn_like(matrix[..., :1])
            noise = torch.linalg.solve_triangular(factor, white, upper=True)[..., 0]
            noise = noise / count.sqrt()
        return params[self.name] + noise.reshape(len(scales), *self.parameter.shape)

    def distribution(self, params: Params) -> Distribution:
        """The marginal, with the precision integrated out: Student's t."""
        count, mean = params[self.key], params[self.name]
        if self.kind.event_dim:
            n, scatter = self.scale.coefficients(params)
            n = n.reshape(-1)[self.rows].reshape(self.batch)
            df = n + 2.0
            spread = rows_of(scatter, 2)[self.rows].reshape(*self.batch, self._dim, self._dim)
            root = torch.linalg.cholesky(spread / (df * count)[..., None, None])
            t: Distribution = dist.MultivariateStudentT(df, mean, root, validate_args=False)
            return t
        a, b = (c.expand(self.scale.batch) for c in self.scale.coefficients(params))
        shape = a.reshape(-1)[self.rows].reshape(self.batch) + 1.0
        rate = b.reshape(-1)[self.rows].reshape(self.batch)
        scale = torch.sqrt(rate / (shape * count))
        found: Distribution = dist.StudentT(2.0 * shape, mean, scale, validate_args=False)
        return found
