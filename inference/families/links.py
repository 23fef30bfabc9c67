"""Links: functions from an entry of a parameter to the value of a family's parameter.

One vocabulary serves the M-step, which takes the inverse of a link at a maximiser, and conjugate
priors, which are registered for the link (``families/conjugacy.py``). Links of the same name are
the same function; some take another way to it, for the sake of the digits.

A matrix is declared as a precision, a covariance or a Cholesky factor of one, and its links know
two ways more: the Cholesky factor of what is declared, and what is declared at the maximiser of a
scatter matrix. To invert twice would lose its digits twice.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ember.inference.numerics.log_space import safe_log

__all__ = [
    "COVARIANCE",
    "IDENTITY",
    "PRECISION",
    "SCALE_TRIL",
    "SIGMOID",
    "SOFTMAX",
    "Exponential",
    "Link",
    "MatrixLink",
    "Power",
]


class Link(ABC):
    """A function of the rows of a parameter; links have no state but numbers."""

    is_free: ClassVar[bool] = False
    """Whether the parameter may be any real number: the link keeps the value in its range."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it does, in a word; links of the same name are the same function."""

    @property
    def exponent(self) -> float | None:
        """Of a power of the parameter its exponent, else None."""
        return None

    @abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """The values of the family's parameter at rows of the parameter."""

    @abstractmethod
    def inverse(self, values: Tensor) -> Tensor:
        """The rows of the parameter at values of the family's parameter."""


@dataclass(frozen=True)
class Identity(Link):
    """The parameter itself."""

    @property
    def name(self) -> str:
        return "identity"

    @property
    def exponent(self) -> float | None:
        return 1.0

    def forward(self, rows: Tensor) -> Tensor:
        return rows

    def inverse(self, values: Tensor) -> Tensor:
        return values


@dataclass(frozen=True)
class Power(Link):
    """The ``k``-th power of a positive parameter, by way of its logarithm."""

    k: float

    @property
    def name(self) -> str:
        return IDENTITY.name if self.k == 1.0 else f"power {self.k!r}"

    @property
    def exponent(self) -> float | None:
        return self.k

    def forward(self, rows: Tensor) -> Tensor:
        return torch.exp(self.k * safe_log(rows))

    def inverse(self, values: Tensor) -> Tensor:
        return torch.pow(values, 1.0 / self.k)


@dataclass(frozen=True)
class Exponential(Link):
    """``exp(factor * parameter)``: the parameter is a logarithm."""

    factor: float = 1.0
    is_free: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"exponential {self.factor!r}"

    def forward(self, rows: Tensor) -> Tensor:
        return torch.exp(self.factor * rows)

    def inverse(self, values: Tensor) -> Tensor:
        return safe_log(values) / self.factor


@dataclass(frozen=True)
class Sigmoid(Link):
    """The parameter is the log odds of a probability."""

    is_free: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "sigmoid"

    def forward(self, rows: Tensor) -> Tensor:
        return torch.sigmoid(rows)

    def inverse(self, values: Tensor) -> Tensor:
        return torch.logit(values, eps=torch.finfo(values.dtype).tiny)


@dataclass(frozen=True)
class Softmax(Link):
    """The parameter holds logarithms of probabilities, up to a constant for each row."""

    is_free: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "softmax"

    def forward(self, rows: Tensor) -> Tensor:
        return rows.softmax(-1)

    def inverse(self, values: Tensor) -> Tensor:
        return safe_log(values)


class MatrixLink(Link):
    """From a matrix as the model declares it to a precision matrix."""

    is_precision: ClassVar[bool] = False
    """Whether the model declares a precision, not a covariance or a factor of one."""

    def inverse(self, values: Tensor) -> Tensor:
        covariance = torch.cholesky_inverse(_factor(values))
        return self.of_scatter(values.new_ones(len(values)), covariance)

    def root(self, rows: Tensor) -> Tensor:
        """The Cholesky factor of the precision or of the covariance that is declared."""
        return _factor(rows)

    @abstractmethod
    def precision_factor(self, factor: Tensor) -> Tensor:
        """By what the precision is multiplied if what is declared is multiplied by a factor."""

    @abstractmethod
    def of_scatter(self, count: Tensor, scatter: Tensor) -> Tensor:
        """What is declared where the covariance of every row is its scatter over its count."""


@dataclass(frozen=True)
class Precision(MatrixLink):
    """The precision matrix itself."""

    is_precision: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return IDENTITY.name

    def forward(self, rows: Tensor) -> Tensor:
        return rows

    def precision_factor(self, factor: Tensor) -> Tensor:
        return factor

    def of_scatter(self, count: Tensor, scatter: Tensor) -> Tensor:
        return torch.cholesky_inverse(_factor(scatter / count.reshape(-1, 1, 1)))


@dataclass(frozen=True)
class Covariance(MatrixLink):
    """The inverse of a covariance matrix."""

    @property
    def name(self) -> str:
        return "covariance"

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cholesky_inverse(_factor(rows))

    def precision_factor(self, factor: Tensor) -> Tensor:
        return 1.0 / factor

    def of_scatter(self, count: Tensor, scatter: Tensor) -> Tensor:
        return (scatter + scatter.mT) / (2.0 * count[:, None, None])


@dataclass(frozen=True)
class ScaleTril(MatrixLink):
    """The inverse of a covariance matrix whose Cholesky factor is declared."""

    @property
    def name(self) -> str:
        return "scale_tril"

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cholesky_inverse(rows)

    def root(self, rows: Tensor) -> Tensor:
        return rows

    def precision_factor(self, factor: Tensor) -> Tensor:
        return factor**-2.0

    def of_scatter(self, count: Tensor, scatter: Tensor) -> Tensor:
        return _factor(scatter / count[:, None, None])


def _factor(matrix: Tensor) -> Tensor:
    """The Cholesky factor, or NaN where there is none."""
    factor: Tensor = torch.linalg.cholesky_ex(matrix)[0]
    return factor


IDENTITY = Identity()
SIGMOID = Sigmoid()
SOFTMAX = Softmax()
PRECISION = Precision()
COVARIANCE = Covariance()
SCALE_TRIL = ScaleTril()
