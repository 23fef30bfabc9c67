r"""The sandwich: errors that hold if the model is wrong about how the rows are spread.

With the information :math:`I` and the score :math:`s_n = \nabla_u \log p(x_n \mid \hat\theta)` of
each independent row (of chains: sequence), which counts :math:`w_n` times,

.. math:: \operatorname{Cov} \hat u \approx I^{-1} \Big(\sum_n w_n (s_n - \bar s)
          (s_n - \bar s)^\top \Big) I^{-1}.

At a maximum of the likelihood :math:`\bar s = 0`; at one of the posterior the mean is what the
prior holds against. A row of weight 3 counts as three rows, as it does in the likelihood.

Reference: White (1982), *Maximum likelihood estimation of misspecified models*, Econometrica 50,
1-25.
"""

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.plan.plan import Params, Plan
from ember.inference.queries.uncertainty.observed_information import (
    ObservedInformation,
    steps_around,
)

__all__ = ["spread_of_scores"]


SAME = 1e-6  # difference of log evidence, relative, that does not count


def spread_of_scores(plan: Plan, params: Params, information: ObservedInformation) -> Tensor:
    """The sum of squares and products of the rows' scores about their mean, ``(A, A)``.

    Two passes over the data for each free coordinate.

    Raises:
        ValueError: If the data are one unit, or do not fall apart into independent ones.
    """
    weights = _weights(plan)
    evidence, coordinates = LogEvidence.of(plan), information.coordinates
    total = float(evidence(params))
    if abs(float((weights * evidence.rows(params)).sum()) - total) > SAME * (1.0 + abs(total)):
        raise ValueError(
            "robust standard errors need independent rows, and the rows of this model have more in "
            "common than its parameters; use robust=False, or bootstrap the units that are "
            "independent."
        )

    if not len(information.places):
        return information.matrix

    def rows(vector: Tensor) -> Tensor:
        return evidence.rows(coordinates.unflatten(vector))

    around = steps_around(rows, information.point, information.places, information.steps)
    scores = torch.stack([(up - down) / width for up, down, width in around], -1)
    mean = (weights @ scores) / weights.sum()
    centred = (scores - mean) * weights.sqrt().unsqueeze(-1)
    return centred.mT @ centred


def _weights(plan: Plan) -> Tensor:
    """How often each row counts.

    Raises:
        ValueError: If there are no rows, or they count differently in several sites.
    """
    if plan.row is None or plan.sizes[plan.row] < 2:
        raise ValueError(
            "robust standard errors compare independent rows, and the data of this model are one "
            "unit (a single series, say, or effects that rows share); use robust=False."
        )
    count, found = plan.sizes[plan.row], list[Tensor]()
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
