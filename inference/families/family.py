r"""Exponential families in natural form: statistics, natural parameters, maximisers.

A family writes the log density of an event as

.. math:: \log p(x \mid \theta) = \langle \eta(\theta), T(x) \rangle + h(x),

with the log normaliser carried by the statistic that counts observations. Each parameter of a
family is of one of eight kinds. Given expected statistics, its share of the expected log likelihood
has a canonical shape, the same for every family that has a parameter of this kind:

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

Conjugate priors have the same shapes (``families/conjugacy.py``), so they add.
Reference: Barndorff-Nielsen (1978), *Information and Exponential Families*, Wiley.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["Family", "Values", "contribution_to_maximiser"]


Values = tuple[Tensor, ...]


class Family(ABC):
    """One exponential family; instances have no state."""

    kinds: ClassVar[tuple[str, ...]]
    """The kind of each family parameter, in the order of the family parameters."""

    @abstractmethod
    def natural_parameters(self, *values: Tensor) -> Tensor:
        """``eta`` of shape ``(..., P)`` from one tensor per family parameter."""

    @abstractmethod
    def contribution(
        self, position: int, statistics: Tensor, values: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """The canonical coefficients of one parameter, given statistics ``(C, P)`` and values."""

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        """Statistics of ``x + by`` from those of ``x``; only families with a location move."""
        return statistics


def contribution_to_maximiser(kind: str, coefficients: list[Tensor], link: str = "") -> Tensor:
    """The closed form of the table above; a parameter nothing was said about comes out as NaN.

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
