"""A component whose rows are alike: the latents of each row, read by the columns of its data."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.gaussian.component import GaussianComponent, Natural, Potentials
from ember.inference.factors.gaussian.row_wise import (
    Products,
    RowWiseFactor,
    pooled_quadratics,
    row_quadratics,
)
from ember.inference.numerics.gaussian.blocks import block_log_integral
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.systems import GaussianSystem, gaussian_system

__all__ = ["RowWiseComponent"]


@dataclass(frozen=True, eq=False)
class RowWiseComponent(GaussianComponent):
    """Rows with ``q`` latent entries each.

    Attributes:
        members: The sites, laid out by rows and columns.
        entries: The number of each row's entries among those of all latents, ``(R, q)``.
    """

    members: tuple[RowWiseFactor, ...]
    entries: Tensor

    @property
    def description(self) -> str:
        rows, width = self.entries.shape
        return f"{rows:,} rows of {width}"

    @functools.cached_property
    def pattern(self) -> Pattern:
        one, other = torch.tril_indices(self.entries.shape[1], self.entries.shape[1])
        return Pattern.of(
            self.count, self.entries[:, one].reshape(-1), self.entries[:, other].reshape(-1)
        )

    @functools.cached_property
    def system(self) -> GaussianSystem:
        return gaussian_system(self.pattern)

    @functools.cached_property
    def row_of_entry(self) -> Tensor:
        rows = torch.arange(len(self.entries), device=self.entries.device)
        out = torch.zeros_like(self.entries.reshape(-1))
        out[self.entries.reshape(-1)] = rows.repeat_interleave(self.entries.shape[1])
        return out

    def log_prob(self, natural: Natural, pieces: Natural | None = None) -> Tensor:
        form = row_quadratics(self.members, natural, *self.entries.shape)
        return self.in_dims(
            self._per_state(form.constant, 1)
            + self._per_state(block_log_integral(form.linear, form.precision), 1)
        )

    @property
    def is_whole(self) -> bool:
        gaps = any(member.shown is not None for member in self.members)
        return not gaps and self.factor.scale is None

    @property
    def is_pooled(self) -> bool:
        return self._products is not None

    def pooled(self, natural: Natural) -> Tensor:
        assert self._products is not None
        width = self.entries.shape[1]
        constant, outer, precision = pooled_quadratics(self.members, natural, self._products, width)
        zero = torch.zeros_like(outer[..., 0])
        normaliser = block_log_integral(zero, precision) * self._products.count
        solved: Tensor = torch.linalg.solve(precision, outer)
        explained: Tensor = solved.diagonal(dim1=-2, dim2=-1).sum(-1)
        return constant + normaliser + 0.5 * explained

    def potentials(self, natural: Natural, pieces: Natural | None = None) -> Potentials:
        rows, width = self.entries.shape
        form = row_quadratics(self.members, natural, rows, width)
        flat = self.entries.reshape(-1)
        linear = self._per_state(form.linear, 2).flatten(-2)
        ordered = torch.empty_like(linear).index_copy(-1, flat, linear)
        place = torch.empty_like(flat)
        place[flat] = torch.arange(len(flat), device=flat.device)
        one, other = place[self.pattern.rows], place[self.pattern.columns]
        precision = self._per_state(form.precision, 3)
        row = one // width if precision.shape[-3] > 1 else torch.zeros_like(one)
        values = precision[..., row, one % width, other % width]
        return Potentials(self._per_state(form.constant, 1), ordered, values)

    def _per_state(self, tensor: Tensor, tail: int) -> Tensor:
        """A tensor of one value for all discrete states, for each of them."""
        states = math.prod(size for _, size in self.states)
        shape = tensor.shape
        lead = shape[: len(shape) - tail - 1]
        return tensor.expand(*lead, states, *shape[len(shape) - tail :])

    @functools.cached_property
    def _products(self) -> Products | None:
        """Sums over rows, if those say it all: no gaps, no weights, no discrete latents."""
        if self.states or not self.is_whole:
            return None
        return Products.of(self.members, len(self.entries))
