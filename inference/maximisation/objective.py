r"""What the M-step maximises, and the gradient of what EM ascends.

By Fisher's identity the gradient of the objective at the parameters :math:`\theta_t` of an E-step
is that of the expected log joint there,

.. math:: \nabla \log p(x, \theta_t) = \nabla_\theta Q(\theta \mid \theta_t) \big|_{\theta_t},

whatever the latents: no derivative goes through the sum over them.
"""

import dataclasses
import itertools
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Params
from ember.inference.plan.statistics import Statistics

__all__ = ["QuickScore", "expected_log_joint", "near", "score"]


@runtime_checkable
class QuickScore(Protocol):
    """Coordinates that know a quicker way to the score in them."""

    def quick_score(self, statistics: Statistics) -> Tensor:
        """The score, not everywhere."""
        ...


def expected_log_joint(statistics: Statistics, params: Params) -> Tensor:
    """EM's ``Q(params)``: expected log joint given the statistics, log prior included."""
    total = statistics.prior.log_prob(params)
    for tied, sums in statistics.sums.values():
        total = total + (sums * tied.natural_parameters(params)).sum()
    for piece in statistics.opaque:
        total = total + piece.expected_log_prob(params)
    for site in statistics.near:
        total = total + site.expected_log_prob(params)
    if statistics.second_order is not None:
        total = total + statistics.second_order.expected_log_prob(params)
    return total


def near(statistics: Statistics, params: Params) -> Statistics:
    """Statistics with the same expected log joint to second order around some parameters.

    Where sites without sufficient statistics have lines in the parameters, their derivatives are
    taken by these, in one look at the rows; what is left of them reads none.
    """
    if not statistics.opaque:
        return statistics
    found, rest = zip(*(piece.near(params) for piece in statistics.opaque), strict=True)
    return dataclasses.replace(
        statistics,
        opaque=tuple(piece for piece in rest if piece is not None),
        near=tuple(itertools.chain.from_iterable(found)),
    )


def score(statistics: Statistics, coordinates: Coordinates, everywhere: bool = False) -> Tensor:
    """The gradient of the objective at ``statistics.params``, by Fisher's identity.

    Args:
        statistics: Of the place.
        coordinates: In which the gradient is taken.
        everywhere: Whether to take it in coordinates at rest too, next to their boundary. It
            is zero there otherwise.
    """
    if not everywhere and isinstance(coordinates, QuickScore):
        return coordinates.quick_score(statistics)
    point = coordinates.flatten(statistics.params)
    rests = coordinates.at_rest(point)
    # At infinity a derivative is infinity times zero; nearby it is zero, as it should be.
    near = torch.where(rests, coordinates.inside(point), point)
    with torch.enable_grad():
        free = near.requires_grad_()
        value = expected_log_joint(statistics, coordinates.unflatten(free))
        if not value.requires_grad:  # no parameter enters it
            return torch.zeros_like(point)
        (gradient,) = torch.autograd.grad(value, free)
    # A root of zero is where the square is flat, whatever the (infinite) slope of a logarithm.
    root = gradient.isnan() & (point == 0.0) if coordinates.has_roots else False
    still = root if everywhere else rests | root
    return torch.where(torch.as_tensor(still), 0.0, gradient).detach()
