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

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to

from ember.inference.parameters.supports import base_support, is_real

__all__ = ["log_jacobian"]


def log_jacobian(support: constraints.Constraint, value: Tensor) -> Tensor:
    """The log Jacobian of every entry (or vector, or matrix) of a value; it broadcasts to zero."""
    base = base_support(support)
    if is_real(base):
        return value.new_zeros(())
    if base is constraints.simplex:
        return value.log().sum(-1)
    transform = biject_to(base)
    found: Tensor = transform.log_abs_det_jacobian(transform.inv(value), value)
    return found
