r"""The log posterior density of the parameters as a function of a free vector, with its gradient.

.. math:: \log p(u \mid x) = \log p(x \mid \theta(u)) + \log p(\theta(u))
          + \log |\partial \theta / \partial u| + \text{const},

latents integrated out by the plan. By Fisher's identity its gradient is that of the expected log
joint, so that a value and a gradient cost one E-step, and nothing is differentiated through the
sum over the latents.
"""

import math

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.maximisation.edges import has_edges
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.parameters.free_vector import FreeVector
from ember.inference.plan.plan import Plan

__all__ = ["PosteriorDensity"]


class PosteriorDensity:
    """The density of one plan.

    Args:
        plan: A plan in unconstrained coordinates, whose prior has the Jacobian.

    Attributes:
        coordinates: The bijection between parameters and vectors.
        evaluations: How often it was evaluated.
    """

    def __init__(self, plan: Plan) -> None:
        self.coordinates = FreeVector(plan.structure.parameters)
        self.evaluations = 0
        self._evidence = LogEvidence.of(plan)

    def has_edges(self, vector: Tensor) -> bool:
        """Whether slopes jump, as those of ``Laplace`` do, so that a curvature says nothing."""
        fixed = {n: v.detach() for n, v in self.coordinates.unflatten(vector).items()}
        return has_edges(self._evidence.plan, self._evidence.statistics(fixed))

    def __call__(self, vector: Tensor) -> tuple[float, Tensor]:
        """The log density and its gradient; minus infinity and zeros where it has none."""
        self.evaluations += 1
        with torch.enable_grad():
            free = vector.detach().clone().requires_grad_()
            params = self.coordinates.unflatten(free)
            try:
                fixed = {name: value.detach() for name, value in params.items()}
                statistics = self._evidence.statistics(fixed)
                (gradient,) = torch.autograd.grad(expected_log_joint(statistics, params), free)
            except (RuntimeError, ValueError, ArithmeticError):
                return -math.inf, torch.zeros_like(vector)
        value = statistics.objective
        finite = math.isfinite(value) and bool(gradient.isfinite().all())
        if not finite or value <= 0.1 * IMPOSSIBLE:
            return -math.inf, torch.zeros_like(vector)
        return value, gradient
