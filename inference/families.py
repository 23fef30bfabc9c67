r"""Exponential families in natural form: statistics, natural parameters, and what a slot receives.

A family writes the log density of an event as

.. math:: \log p(x \mid \theta) = \langle \eta(\theta), T(x) \rangle + h(x),

with the log normaliser carried by the statistic that counts observations. Each parameter of a
family is a *slot* of one of eight kinds. Given expected statistics, a slot's share of the expected
log likelihood has a canonical shape, the same for every family that has such a slot:

=============  ==============================================  ======================
kind           expected log likelihood                         maximiser
=============  ==============================================  ======================
probability    ``a log p + b log(1 - p)``                      ``a / (a + b)``
sticks         the same, for each entry of a vector ``p``      ``a / (a + b)``
simplex        ``sum_k a_k log p_k``                           ``a / sum(a)``
rate           ``a log r - b r``                               ``a / b``
location       ``h m - J m^2 / 2``                             ``h / J``
vector         ``h'm - m'J m / 2``                             ``J^-1 h``
matrix         ``n/2 log|P| - tr(B P) / 2``                    ``n B^-1``
coefficients   ``h'b - b'J b / 2``, jointly over all cells     ``J^-1 h``
=============  ==============================================  ======================

Conjugate priors have the same shapes (``conjugacy.py``), so they add.
Reference: Barndorff-Nielsen (1978), *Information and Exponential Families*, Wiley.
"""

import functools
import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

__all__ = [
    "Bernoulli",
    "Categorical",
    "Family",
    "Location",
    "MultivariateNormal",
    "Normal",
    "Rate",
    "Regression",
    "Sticks",
    "contribution_to_maximiser",
    "log_chance",
    "safe_log",
]

Slots = tuple[Tensor, ...]
LOG_2PI = math.log(2.0 * math.pi)
IMPOSSIBLE = -1e30  # stands for log 0: finite, so that its gradient is 0 and not NaN


def safe_log(x: Tensor) -> Tensor:
    """Logarithm that stays finite at zero, so that an impossible event times no count is zero."""
    return x.clamp_min(torch.finfo(x.dtype).tiny).log()


def log_chance(x: Tensor) -> Tensor:
    """Logarithm of a probability or rate: of zero a number that no data outweigh, and finite.

    The logarithm of the least number, -708, would not do: a row that lies 40 standard deviations
    from everything that is possible would rather do what the model forbids.
    """
    return torch.where(x > 0.0, safe_log(x), IMPOSSIBLE)


class Family(ABC):
    """One exponential family; instances have no state."""

    kinds: ClassVar[tuple[str, ...]]
    """The kind of each slot, in the order of the slots."""

    @abstractmethod
    def natural_parameters(self, *slots: Tensor) -> Tensor:
        """``eta`` of shape ``(..., P)`` from one tensor per slot."""

    @abstractmethod
    def contribution(
        self, slot: int, statistics: Tensor, slots: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """The canonical coefficients of one slot, given statistics ``(C, P)`` and all slots."""

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        """Statistics of ``x + by`` from those of ``x``; only families with a location move."""
        return statistics


class Bernoulli(Family):
    """``T = (a, b)``: successes and failures of an event with probability ``p``."""

    kinds = ("probability",)

    def natural_parameters(self, *slots: Tensor) -> Tensor:
        (p,) = slots
        never = torch.log1p(-torch.where(p < 1.0, p, 0.0))  # exact for the smallest chances too
        return torch.stack([log_chance(p), torch.where(p < 1.0, never, IMPOSSIBLE)], -1)

    def contribution(
        self, slot: int, statistics: Tensor, slots: tuple[Tensor, ...]
    ) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]


class Sticks(Family):
    """``T = (a, b)``: successes and failures of ``J`` events with probabilities ``p``."""

    kinds = ("sticks",)

    def natural_parameters(self, *slots: Tensor) -> Tensor:
        (p,) = slots
        return torch.cat([log_chance(p), log_chance(1.0 - p)], -1)

    def contribution(
        self, slot: int, statistics: Tensor, slots: tuple[Tensor, ...]
    ) -> list[Tensor]:
        return list(statistics.chunk(2, -1))


class Categorical(Family):
    """``T = counts``: how often each of ``K`` categories occurred."""

    kinds = ("simplex",)

    def natural_parameters(self, *slots: Tensor) -> Tensor:
        return log_chance(slots[0])

    def contribution(
        self, slot: int, statistics: Tensor, slots: tuple[Tensor, ...]
    ) -> list[Tensor]:
        return [statistics]


class Rate(Family):
    """``T = (a, b)`` with log density ``a log r - b r``: Poisson, exponential, Gamma, precision."""

    kinds = ("rate",)

    def natural_parameters(self, *slots: Tensor) -> Tensor:
        (r,) = slots
        return torch.stack([log_chance(r), -r], -1)

    def contribution(
        self, slot: int, statistics: Tensor, slots: tuple[Tensor, ...]
    ) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]


class Location(Family):
    """``T = (h, J)``: a normal location whose precision is known, row by row."""

    kinds = ("location",)

    def natural_parameters(self, *slots: Tensor) -> Tensor:
        (m,) = slots
        return torch.stack([m, -0.5 * m * m], -1)

    def contribution(
        self, slot: int, statistics: Tensor, slots: tuple[Tensor, ...]
    ) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        h, precision = statistics.unbind(-1)
        return torch.stack([h + by * precision, precision], -1)


class Normal(Family):
    """``T = (1, x, x^2)``: location ``m`` and precision ``r`` both to be estimated."""

    kinds = ("location", "rate")

    def natural_parameters(self, *slots: Tensor) -> Tensor:
        m, r = slots
        constant = 0.5 * (safe_log(r) - r * m * m - LOG_2PI)
        return torch.stack([constant, r * m, (-0.5 * r).expand_as(constant)], -1)

    def contribution(
        self, slot: int, statistics: Tensor, slots: tuple[Tensor, ...]
    ) -> list[Tensor]:
        n, s, q = statistics.unbind(-1)
        m, r = slots
        if slot == 0:
            return [r * s, r * n]
        scatter = q - 2.0 * m * s + n * m * m
        return [0.5 * n, 0.5 * scatter.clamp_min(0.0)]

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        n, s, q = statistics.unbind(-1)
        return torch.stack([n, s + by * n, q + 2.0 * by * s + by * by * n], -1)


class MultivariateNormal(Family):
    """``T = (1, x, vech(x x'))``: location vector ``m`` and precision matrix ``P``."""

    kinds = ("vector", "matrix")

    def natural_parameters(self, *slots: Tensor) -> Tensor:
        m, precision = slots
        dim = m.shape[-1]
        log_det = 2.0 * _log_diagonal(precision).sum(-1)
        linear = (precision @ m.unsqueeze(-1)).squeeze(-1)
        constant = 0.5 * (log_det - (m * linear).sum(-1) - dim * LOG_2PI)
        rows, columns, halves = _vech_indices(dim)
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
        self, slot: int, statistics: Tensor, slots: tuple[Tensor, ...]
    ) -> list[Tensor]:
        m, precision = slots
        n, s, q = self.moments(statistics, m.shape[-1])
        if slot == 0:
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
        rows, columns, _ = _vech_indices(dim)
        return torch.cat([n[:, None], s + n[:, None] * by, moved[:, rows, columns]], -1)

    @staticmethod
    def statistics(x: Tensor) -> Tensor:
        """``T(x)`` of shape ``(..., P)`` with ``P = 1 + D + D(D+1)/2``."""
        rows, columns, _ = _vech_indices(x.shape[-1])
        return torch.cat([torch.ones_like(x[..., :1]), x, x[..., rows] * x[..., columns]], -1)

    @staticmethod
    def moments(statistics: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Count ``(C,)``, sum ``(C, D)`` and sum of squares ``(C, D, D)``."""
        q = statistics[..., 1 + dim + _vech_positions(dim)]
        return statistics[..., 0], statistics[..., 1 : 1 + dim], q


class Regression(Family):
    """``T = (1, vech(u u'))`` with ``u = (x, y)``: coefficients ``b`` and precision ``r`` of ``y``.

    Both are in the coordinates of a frame (``design.py``), in which their products lose no digits.

    The log density is ``(log r - r (y - x'b)^2) / 2`` up to a constant.
    """

    kinds = ("coefficients", "rate")

    def natural_parameters(self, *slots: Tensor) -> Tensor:
        b, r = slots
        rows, columns, halves = _vech_indices(b.shape[-1] + 1)
        w = torch.cat([-b, torch.ones_like(b[..., :1])], -1)
        quadratic = halves * r.unsqueeze(-1) * w[..., rows] * w[..., columns]
        constant = (0.5 * (safe_log(r) - LOG_2PI)).unsqueeze(-1)
        return torch.cat([constant.expand_as(quadratic[..., :1]), quadratic], -1)

    def contribution(self, slot: int, statistics: Tensor, slots: Slots) -> list[Tensor]:
        b, r = slots
        squares = self.products(statistics, b.shape[-1] + 1)
        if slot == 0:
            weight = r[:, None, None]
            return [(weight * squares)[:, :-1, -1], weight * squares[:, :-1, :-1]]
        w = torch.cat([-b, torch.ones_like(b[..., :1])], -1)
        residual = (w.unsqueeze(-2) @ squares @ w.unsqueeze(-1)).reshape(-1)
        return [0.5 * statistics[:, 0], 0.5 * residual.clamp_min(0.0)]

    @staticmethod
    def statistics(u: Tensor) -> Tensor:
        """``T`` of shape ``(..., P)`` with ``P = 1 + (F + 1)(F + 2) / 2``."""
        rows, columns, _ = _vech_indices(u.shape[-1])
        return torch.cat([torch.ones_like(u[..., :1]), u[..., rows] * u[..., columns]], -1)

    @staticmethod
    def products(statistics: Tensor, dim: int) -> Tensor:
        """The sum of ``u u'`` of each cell, ``(C, F + 1, F + 1)``."""
        return statistics[..., 1 + _vech_positions(dim)]

    @staticmethod
    def turned(statistics: Tensor, turn: Tensor) -> Tensor:
        """Statistics of ``turn @ u`` from those of ``u``, with a matrix for each cell."""
        dim = turn.shape[-1]
        rows, columns, _ = _vech_indices(dim)
        squares = turn @ Regression.products(statistics, dim) @ turn.mT
        return torch.cat([statistics[..., :1], squares[..., rows, columns]], -1)


@functools.cache
def _vech_indices(dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of the upper triangle, and -1/2 on the diagonal, -1 off it.

    An entry off the diagonal stands for two equal entries of ``x x'``.
    """
    rows, columns = torch.triu_indices(dim, dim)
    halves = torch.where(rows == columns, -0.5, -1.0).to(torch.float64)
    return rows, columns, halves


@functools.cache
def _vech_positions(dim: int) -> Tensor:
    """Where each entry of a symmetric matrix stands in its upper triangle, ``(D, D)``."""
    rows, columns = torch.triu_indices(dim, dim)
    positions = torch.zeros(dim, dim, dtype=torch.long)
    positions[rows, columns] = positions[columns, rows] = torch.arange(len(rows))
    return positions


def _log_diagonal(precision: Tensor) -> Tensor:
    factor, _ = torch.linalg.cholesky_ex(precision)
    return safe_log(factor.diagonal(dim1=-2, dim2=-1))


def contribution_to_maximiser(kind: str, coefficients: list[Tensor], link: str = "") -> Tensor:
    """The closed form of the table above; a slot nothing was said about comes out as NaN.

    A matrix comes out as what the model declares, by its ``link``: the precision, its inverse, or
    the Cholesky factor of the latter. To invert twice would lose its digits twice.
    """
    match kind:
        case "probability" | "sticks":
            a, b = coefficients
            return a / (a + b)
        case "simplex":
            (counts,) = coefficients
            return counts / counts.sum(-1, keepdim=True)
        case "rate":
            a, b = coefficients
            return a / b
        case "location":
            h, precision = coefficients
            return h / precision
        case "vector":
            h, precision = coefficients
            solution: Tensor = torch.linalg.solve_ex(precision, h)[0]
            return solution
        case "matrix":
            n, scatter = coefficients
            if link == "inverse":
                return (scatter + scatter.mT) / (2.0 * n[:, None, None])
            factor: Tensor = torch.linalg.cholesky_ex(scatter / n[:, None, None])[0]
            return factor if link == "outer" else torch.cholesky_inverse(factor)
        case _:
            raise AssertionError(kind)
