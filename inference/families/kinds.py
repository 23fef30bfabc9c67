r"""Kinds of parameters of families: the shape that their expected log likelihood has.

Given expected statistics, what a parameter adds to the expected log likelihood has a canonical
shape, the same for every family that has a parameter of its kind:

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

The letters are the *coefficients* of a parameter, one tensor each, a row for every row of the
parameter. Conjugate priors have the same shapes (``conjugacy.py``), so their coefficients add. A
new kind is a class here: it says all that the M-step asks of one.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from ember.inference.families.links import PRECISION, Link, MatrixLink
from ember.inference.families.verdict import Flaw, Verdict
from ember.inference.numerics.symmetric import log_diagonal, times
from ember.inference.parameters.supports import bounds, is_matrix, is_real, is_simplex

__all__ = [
    "COEFFICIENTS",
    "LOCATION",
    "MATRIX",
    "PROBABILITY",
    "RATE",
    "SIMPLEX",
    "STICKS",
    "VECTOR",
    "Kind",
]


NONE = 1e-250  # of a count or a precision: as good as none
SINGULAR = 1e-13  # variance of a column given others over its own: what rounding leaves of zero
ROUNDED = 4.0 * torch.finfo(torch.float64).eps  # the same where a prior has a part in it


@dataclass(frozen=True)
class Kind(ABC):
    """A kind of parameter; instances have no state, and those of one class are equal."""

    event_dim: ClassVar[int] = 0
    """The dims of one value."""
    goes_first: ClassVar[bool] = False
    """Whether it is updated before others are: locations before scales."""
    has_origin: ClassVar[bool] = False
    """Whether its update is found as a step from the present value, which keeps digits."""
    is_joint: ClassVar[bool] = False
    """Whether all parameters of this kind that share an argument are updated together."""
    keeps_unseen: ClassVar[bool] = False
    """Whether a value without any observation stays as it is, instead of an error."""

    @property
    def prior_event_dim(self) -> int:
        """The dims of a value that its prior counts as one entry."""
        return self.event_dim

    def maximiser(self, coefficients: list[Tensor], link: Link) -> Tensor:
        """The rows of a parameter with this link; one that nothing was said about is NaN."""
        return link.inverse(self.best(coefficients))

    @abstractmethod
    def best(self, coefficients: list[Tensor]) -> Tensor:
        """The maximiser in the table above."""

    def worth(self, coefficients: list[Tensor], values: Tensor) -> Tensor:
        """What the coefficients say of some values, in the table above.

        Raises:
            NotImplementedError: For kinds whose values are differences of large numbers.
        """
        raise NotImplementedError

    @abstractmethod
    def degenerate(self, coefficients: list[Tensor], least: Tensor, has_prior: bool) -> Verdict:
        """Which rows have no finite maximiser in the interior.

        Args:
            coefficients: Those of every row, prior included.
            least: The variance of every row (of a matrix: of each column) that is as good as none.
            has_prior: Whether a prior has a part in the coefficients.
        """

    @abstractmethod
    def is_range(self, support: Constraint) -> bool:
        """Whether a support holds every value that the maximiser can take."""

    def natural(self, support: Constraint, link: Link) -> bool:
        """Whether a parameter may take every value that its closed form can.

        Args:
            support: The constraint under which the model declares the parameter.
            link: How the parameter feeds that of the family.
        """
        return is_real(support) if link.is_free else self.is_range(support)

    def jacobian(self, link: Link) -> list[float]:
        """What ``parameters/jacobians.py`` adds to the coefficients, if that can be said so."""
        return []

    def stays_closed(self, support: Constraint, link: Link) -> bool:
        """Whether the closed form has room for the Jacobian of a parameter."""
        if is_real(support):
            return True
        return bool(self.jacobian(link)) and self.natural(support, link)

    def times(self, precision: Tensor, by: Tensor) -> Tensor:
        """A location's second coefficient times a difference of locations."""
        return precision * by

    def collapsed(self, values: Tensor, least: Tensor) -> Tensor:
        """Where a scale that was found numerically has shrunk to nothing."""
        return values.new_zeros(len(values), dtype=torch.bool)


class Probability(Kind):
    """The probability of an event: Bernoulli, binomial."""

    keeps_unseen = True

    def best(self, coefficients: list[Tensor]) -> Tensor:
        a, b = coefficients
        return a / (a + b)

    def worth(self, coefficients: list[Tensor], values: Tensor) -> Tensor:
        a, b = coefficients
        return torch.xlogy(a, values) + torch.xlogy(b, 1.0 - values)

    def degenerate(self, coefficients: list[Tensor], least: Tensor, has_prior: bool) -> Verdict:
        a, b = coefficients
        return _unbounded((a < 0) | (b < 0))

    def is_range(self, support: Constraint) -> bool:
        return bounds(support) == (0.0, 1.0)

    def jacobian(self, link: Link) -> list[float]:
        return [1.0, 1.0] if link.exponent == 1.0 else []


class Sticks(Probability):
    """Probabilities side by side, from which those of categories are made: stick-breaking."""

    event_dim = 1

    @property
    def prior_event_dim(self) -> int:
        return 0  # each stick has a prior of its own

    def degenerate(self, coefficients: list[Tensor], least: Tensor, has_prior: bool) -> Verdict:
        a, b = coefficients
        return _unbounded(((a < 0) | (b < 0)).any(-1))

    def jacobian(self, link: Link) -> list[float]:
        return []


class Simplex(Kind):
    """The probabilities of categories."""

    event_dim = 1
    keeps_unseen = True

    def best(self, coefficients: list[Tensor]) -> Tensor:
        (counts,) = coefficients
        return counts / counts.sum(-1, keepdim=True)

    def worth(self, coefficients: list[Tensor], values: Tensor) -> Tensor:
        (counts,) = coefficients
        return torch.xlogy(counts, values).sum(-1)

    def degenerate(self, coefficients: list[Tensor], least: Tensor, has_prior: bool) -> Verdict:
        (counts,) = coefficients
        return _unbounded((counts < 0).any(-1))

    def is_range(self, support: Constraint) -> bool:
        return is_simplex(support)

    def jacobian(self, link: Link) -> list[float]:
        return [1.0] if link.exponent == 1.0 else []


class Rate(Kind):
    """A rate, or a precision: Poisson, exponential, Gamma, normal."""

    def best(self, coefficients: list[Tensor]) -> Tensor:
        a, b = coefficients
        return a / b

    def worth(self, coefficients: list[Tensor], values: Tensor) -> Tensor:
        a, b = coefficients
        return torch.xlogy(a, values) - b * values

    def degenerate(self, coefficients: list[Tensor], least: Tensor, has_prior: bool) -> Verdict:
        a, b = coefficients
        empty = (a.abs() <= NONE) & (b.abs() <= NONE)
        if bool((a < 0).any()):
            return Verdict(empty, a < 0, Flaw.UNBOUNDED)
        return Verdict(empty, (b <= NONE) | (b <= least * a), Flaw.COLLAPSED)

    def is_range(self, support: Constraint) -> bool:
        return bounds(support) == (0.0, None)

    def jacobian(self, link: Link) -> list[float]:
        return [] if link.exponent is None else [1.0 / link.exponent, 0.0]

    def collapsed(self, values: Tensor, least: Tensor) -> Tensor:
        return values * least > 1.0


class Location(Kind):
    """The location of a normal distribution."""

    goes_first = True
    has_origin = True

    def best(self, coefficients: list[Tensor]) -> Tensor:
        h, precision = coefficients
        return h / precision

    def degenerate(self, coefficients: list[Tensor], least: Tensor, has_prior: bool) -> Verdict:
        _, precision = coefficients
        return Verdict(precision <= NONE, ~torch.isfinite(precision), Flaw.COLLAPSED)

    def is_range(self, support: Constraint) -> bool:
        return is_real(support)


class Vector(Location):
    """The location of a multivariate normal distribution."""

    event_dim = 1

    def best(self, coefficients: list[Tensor]) -> Tensor:
        h, precision = coefficients
        solution: Tensor = torch.linalg.solve_ex(precision, h)[0]
        return solution

    def degenerate(self, coefficients: list[Tensor], least: Tensor, has_prior: bool) -> Verdict:
        _, precision = coefficients
        empty = precision.diagonal(dim1=-2, dim2=-1).amax(-1) <= NONE
        # What is infinite, or no number, is none either when it is taken from itself.
        infinite = (precision - precision).sum((-2, -1)) != 0.0
        return Verdict(empty, infinite, Flaw.COLLAPSED)

    def times(self, precision: Tensor, by: Tensor) -> Tensor:
        return times(precision, by)


class Coefficients(Vector):
    """Entries of a linear predictor; their updates are joined (``maximisation/least_squares``)."""

    event_dim = 0
    has_origin = False
    is_joint = True


class Matrix(Kind):
    """The precision matrix of a multivariate normal distribution."""

    event_dim = 2

    def maximiser(self, coefficients: list[Tensor], link: Link) -> Tensor:
        assert isinstance(link, MatrixLink)
        return link.of_scatter(*coefficients)

    def best(self, coefficients: list[Tensor]) -> Tensor:
        count, scatter = coefficients
        return PRECISION.of_scatter(count, scatter)

    def worth(self, coefficients: list[Tensor], values: Tensor) -> Tensor:
        count, scatter = coefficients
        half_log_det = log_diagonal(values).sum(-1)
        return count * half_log_det - 0.5 * (scatter * values).sum((-2, -1))

    def degenerate(self, coefficients: list[Tensor], least: Tensor, has_prior: bool) -> Verdict:
        """A direction without spread makes a covariance singular, relative to its own columns.

        The squared pivots of a Cholesky factor are the variances of each coordinate given those
        before it; one that is next to nothing means a direction without spread. A prior that adds
        to the scatter has a say in what is next to nothing: then only rounding is.
        """
        n, scatter = coefficients
        factor, failed = torch.linalg.cholesky_ex(scatter)
        pivots = factor.diagonal(dim1=-2, dim2=-1).square()
        share = ROUNDED if has_prior else SINGULAR
        none = share * scatter.diagonal(dim1=-2, dim2=-1) + n[:, None] * least
        singular = (failed != 0) | ~(pivots > none).all(-1)
        return Verdict(n <= NONE, singular, Flaw.SINGULAR)

    def is_range(self, support: Constraint) -> bool:
        return is_matrix(support)


def _unbounded(rows: Tensor) -> Verdict:
    return Verdict(torch.zeros_like(rows), rows, Flaw.UNBOUNDED)


PROBABILITY = Probability()
STICKS = Sticks()
SIMPLEX = Simplex()
RATE = Rate()
LOCATION = Location()
VECTOR = Vector()
MATRIX = Matrix()
COEFFICIENTS = Coefficients()
