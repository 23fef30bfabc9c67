r"""The sandwich: errors that hold if the model is wrong about how the rows are spread.

With the information :math:`I` and the score :math:`s_n = \nabla_u \log p(x_n \mid \hat\theta)` of
each independent row (of chains: sequence), which counts :math:`w_n` times,

.. math:: \operatorname{Cov} \hat u \approx I^{-1} \Big(\sum_n w_n (s_n - \bar s)
          (s_n - \bar s)^\top \Big) I^{-1}.

At a maximum of the likelihood :math:`\bar s = 0`; at one of the posterior the mean is what the
prior holds against. A row of weight 3 counts as three rows, as it does in the likelihood.

References: White (1982), *Maximum likelihood estimation of misspecified models*, Econometrica 50,
1-25; Chan, Golub & LeVeque (1983), *Algorithms for computing the sample variance*, The American
Statistician 37, 242-247 (spreads of parts).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Params, Plan
from ember.inference.queries.uncertainty.differences import steps_around
from ember.inference.queries.uncertainty.passes import Passes

__all__ = ["Rows", "spread_of_scores"]


SAME = 1e-6  # difference of log evidence, relative, that does not count
SMALLEST = torch.finfo(torch.float64).tiny  # rows may have no weight at all


@dataclass(frozen=True)
class _Spread:
    """The scores of some rows.

    Attributes:
        weight: How often the rows count, in all.
        mean: The mean score ``(A,)``.
        products: The sum of squares and products about it, ``(A, A)``.
    """

    weight: Tensor
    mean: Tensor
    products: Tensor

    def __add__(self, other: _Spread) -> _Spread:
        weight, apart = self.weight + other.weight, other.mean - self.mean
        share = other.weight / weight.clamp_min(SMALLEST)
        between = torch.outer(apart, apart) * self.weight * share
        products = self.products + other.products + between
        return _Spread(weight, self.mean + share * apart, products)


@dataclass(frozen=True)
class Rows:
    """What a plan's rows are asked: the spread of their scores along some coordinates.

    Attributes:
        params: The estimates.
        coordinates: All free reals of the parameters.
        point: Their values.
        places: The coordinates that are asked for.
        steps: The length of the differences along them.
    """

    params: Params
    coordinates: Coordinates
    point: Tensor
    places: Tensor
    steps: Tensor

    def __call__(self, plan: Plan) -> _Spread:
        weights, evidence = _weights(plan), LogEvidence.of(plan)
        total = float(evidence(self.params))
        apart = abs(float((weights * evidence.rows(self.params)).sum()) - total)
        if apart > SAME * (1.0 + abs(total)):
            raise ValueError(
                "robust standard errors need independent rows, and the rows of this model have "
                "more in common than its parameters; use robust=False, or bootstrap the units that "
                "are independent."
            )
        if not len(self.places):
            none = self.point.new_zeros(0)
            return _Spread(weights.sum(), none, none.unsqueeze(-1) @ none.unsqueeze(0))

        def rows(vectors: Iterable[Tensor]) -> Iterator[Tensor]:
            for vector in vectors:
                yield evidence.rows(self.coordinates.unflatten(vector)).reshape(-1)

        around = steps_around(rows, self.point, self.places, self.steps)
        scores = torch.stack([(up - down) / width for up, down, width in around], -1)
        mean = (weights @ scores) / weights.sum().clamp_min(SMALLEST)
        centred = (scores - mean) * weights.sqrt().unsqueeze(-1)
        return _Spread(weights.sum(), mean, centred.mT @ centred)


def spread_of_scores(data: Passes, rows: Rows) -> Tensor:
    """The sum of squares and products of the rows' scores about their mean, ``(A, A)``.

    Each row is looked at twice for each free coordinate, in one pass over the data.

    Args:
        data: The data.
        rows: What is asked of its rows.

    Raises:
        ValueError: If the data are one unit, or do not fall apart into independent ones.
    """
    if data.units < 2:
        raise ValueError(
            "robust standard errors compare independent rows, and the data of this model are one "
            "unit (a single series, say, or effects that rows share); use robust=False."
        )
    return data.total(rows, _Spread.__add__).products


def _weights(plan: Plan) -> Tensor:
    """How often each row counts; a single series is a row.

    Raises:
        ValueError: If rows count differently in several sites.
    """
    count, found = 1 if plan.row is None else plan.sizes[plan.row], list[Tensor]()
    for name in plan.structure.observed:
        scale = plan.scales[name]
        if scale is not None and not set(scale.dims) <= {plan.row}:
            raise ValueError(
                f"robust standard errors need one weight for each row, and those of site '{name}' "
                "vary within rows; use robust=False."
            )
        weight = torch.ones(count) if scale is None else scale.tensor.expand(count)
        found.append(weight.to(torch.float64))
    if any(not torch.equal(each, found[0]) for each in found):
        raise ValueError(
            "robust standard errors need one weight for each row, and the observed sites weigh "
            "them differently; use robust=False."
        )
    return found[0]
