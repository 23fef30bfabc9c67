r"""The mode in Pyro's unconstrained coordinates: each prior density times its Jacobian.

A density has another mode in other coordinates. In those of ``biject_to(support)``, in which NUTS
moves and ``AutoLaplaceApproximation`` finds its mode, it is multiplied by
:math:`|d\theta / du|`, for instance

.. math::

    \text{simplex: } \prod_k \theta_k, \qquad
    \text{probability: } \theta (1 - \theta), \qquad
    \text{positive: } \theta,

so that a Dirichlet adds its concentrations to the counts, not its concentrations less one. That
mode is finite and inside the support for every concentration above 0, where the density itself has
none if one is below 1.
"""

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to

from ember.inference.parameters.supports import base_support, is_natural, is_real

__all__ = ["log_jacobian", "pseudo_jacobian", "stays_closed"]


def log_jacobian(support: constraints.Constraint, value: Tensor) -> Tensor:
    """The log Jacobian of every entry (or vector, or matrix) of a value; it broadcasts to zero."""
    base = base_support(support)
    if is_real(base):
        return torch.zeros(())
    if base is constraints.simplex:
        return value.log().sum(-1)
    transform = biject_to(base)
    found: Tensor = transform.log_abs_det_jacobian(transform.inv(value), value)
    return found


def pseudo_jacobian(kind: str, link: str) -> list[float]:
    """What the Jacobian adds to the coefficients of a parameter, ordered as in ``conjugacy.py``."""
    if kind == "simplex" and link == "identity":
        return [1.0]
    if kind == "probability" and link == "identity":
        return [1.0, 1.0]
    if kind == "rate" and link.startswith("power "):
        return [1.0 / float(link.removeprefix("power ")), 0.0]
    return []


def stays_closed(kind: str, link: str, support: constraints.Constraint) -> bool:
    """Whether the closed form of a family parameter has room for the Jacobian of its parameter."""
    if is_real(base_support(support)):
        return True
    return bool(pseudo_jacobian(kind, link)) and is_natural(kind, link, support)
