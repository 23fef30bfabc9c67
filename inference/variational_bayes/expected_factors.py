r"""Tied factors whose natural parameters are expected under the posteriors of their parameters.

Natural parameters are linear in functions of each parameter, such as :math:`\log r` and :math:`r`,
or :math:`m` and :math:`m^2`. So what is expected of them is their value at the posterior means,
which loses no digits that EM would keep, and a small correction. That of a normal density is

.. math::

    E[\log p(x)] = \log p(x \mid \bar m, \bar r)
    + \tfrac12 \bigl(E[\log r] - \log \bar r\bigr) - \tfrac12 E\bigl[r (m - \bar m)^2\bigr].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from ember.inference.factors.tied import TiedFactors
from ember.inference.families.discrete import Bernoulli, Categorical, Sticks
from ember.inference.families.exponential_form import FamilyParameter
from ember.inference.families.family import Family, Values
from ember.inference.families.multivariate_normal import MultivariateNormal
from ember.inference.families.normal import Location, Normal
from ember.inference.families.rates import Rate
from ember.inference.families.regression import Regression
from ember.inference.families.weighted import WeightedMultivariateNormal, WeightedNormal
from ember.inference.parameters.argument_map import ParameterRows, row_count
from ember.inference.variational_bayes.posterior import Posterior

__all__ = ["SQUARES", "ExpectedFactors", "can_expect", "corrections_of"]

Corrections = list[Tensor | None]  # by position, those of each cell
Correction = Callable[[Values, Corrections], Tensor]


def _all(values: Values, found: Corrections) -> Tensor:
    """Logarithms of probabilities, each with a correction of its own."""
    assert found[0] is not None
    return found[0]


def _rate(values: Values, found: Corrections) -> Tensor:
    assert found[0] is not None
    return torch.cat([found[0], torch.zeros_like(found[0])], -1)


def _location(values: Values, found: Corrections) -> Tensor:
    assert found[0] is not None
    variance = found[0][:, :1]
    return torch.cat([torch.zeros_like(variance), -0.5 * variance], -1)


def _scaled(values: Values, found: Corrections) -> Tensor:
    """Of the constant of a normal density: see above."""
    return (_log_scale(values, found) - _spread(values, found)).unsqueeze(-1)


def _weighted(values: Values, found: Corrections) -> Tensor:
    """The same where squares are counted apart from events."""
    return torch.stack([_log_scale(values, found), -_spread(values, found)], -1)


def _log_scale(values: Values, found: Corrections) -> Tensor:
    none = values[1].new_zeros(len(values[1]))
    return none if found[1] is None else 0.5 * found[1][:, 0]


def _spread(values: Values, found: Corrections) -> Tensor:
    """Half of what is expected of ``r (m - mean)^2``."""
    precision, moved = values[1].reshape(len(values[1]), -1), found[0]
    if moved is None:
        return precision.new_zeros(len(precision))
    return 0.5 * ((moved[:, :-1] * precision).sum(-1) + moved[:, -1])


CORRECTIONS: dict[type[Family], Correction] = {
    Bernoulli: _all,
    Categorical: _all,
    Sticks: _all,
    Rate: _rate,
    Location: _location,
    Normal: _scaled,
    MultivariateNormal: _scaled,
    Regression: _scaled,
    WeightedNormal: _weighted,
    WeightedMultivariateNormal: _weighted,
}
SQUARES: dict[type[Family], int] = {  # the statistic that counts squares about the location
    Normal: 0,
    MultivariateNormal: 0,
    WeightedNormal: 1,
    WeightedMultivariateNormal: 1,
}


def can_expect(tied: TiedFactors, position: int) -> bool:
    """Whether natural parameters can be expected under a posterior of one parameter."""
    table = tied.parameters[position].table
    if not isinstance(table, ParameterRows) or table.on != "raw":
        return False
    return type(tied.family) in CORRECTIONS


class Expected(Family):
    """A family whose natural parameters are given as they are."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.kinds = family.kinds  # type: ignore[misc]

    @property
    def name(self) -> str:
        return self.family.name

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (eta,) = values
        return eta

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        raise TypeError("expected natural parameters are maximised by no parameter.")


@dataclass(frozen=True, eq=False)
class ExpectedFactors(TiedFactors):
    """Tied factors at their expected natural parameters.

    Attributes:
        points: The same tied factors at given parameters.
        posteriors: The posteriors of the parameters that have one.
    """

    points: TiedFactors = field(kw_only=True)
    posteriors: Mapping[str, Posterior] = field(kw_only=True)

    @staticmethod
    def of(tied: TiedFactors, posteriors: Mapping[str, Posterior]) -> TiedFactors:
        """Those of tied factors; themselves where no parameter has a posterior."""
        if not any(name in posteriors for fed in tied.parameters for name in fed.sources):
            return tied
        known = {f.name: getattr(tied, f.name) for f in fields(TiedFactors) if f.init}
        known["family"] = Expected(tied.family)
        return ExpectedFactors(**known, points=tied, posteriors=posteriors)

    def parameter_values(self, params: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The expected natural parameters of every cell, in the place of values."""
        values = self.points.parameter_values(params)
        found: Corrections = [
            corrections_of(self.points, i, self.posteriors, params) for i in range(len(values))
        ]
        eta = self.points.family.natural_parameters(*values)
        correction = CORRECTIONS[type(self.points.family)](values, found)
        rest = eta.shape[-1] - correction.shape[-1]
        return (eta + torch.nn.functional.pad(correction, (0, rest)),)

    def natural_parameters(self, params: Mapping[str, Tensor]) -> Tensor:
        return self.parameter_values(params)[0]


def corrections_of(
    tied: TiedFactors,
    position: int,
    posteriors: Mapping[str, Posterior],
    params: Mapping[str, Tensor],
) -> Tensor | None:
    """The corrections of one parameter in each cell; None where it has no posterior."""
    fed = tied.parameters[position]
    if not any(name in posteriors for name in fed.sources):
        return None
    rows = _rows(fed, posteriors, params)
    return rows[tied.cells[:, position]]


def _rows(
    fed: FamilyParameter, posteriors: Mapping[str, Posterior], params: Mapping[str, Tensor]
) -> Tensor:
    """The corrections of all rows of a table and of the constants after them; points have none."""
    assert fed.table is not None
    each = [
        posteriors[name].corrections(params)
        if name in posteriors
        else row_count(params[name].shape, fed.table.event_dim)
        for name in fed.sources
    ]
    width = next(rows for rows in each if isinstance(rows, Tensor))
    blocks = [r if isinstance(r, Tensor) else width.new_zeros(r, width.shape[1]) for r in each]
    return torch.cat([*blocks, width.new_zeros(len(fed.constants), width.shape[1])])
