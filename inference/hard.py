r"""Classification EM: the E-step takes the most probable value of the latents instead of averaging.

With :math:`\hat z = \arg\max_z \log p(x, z \mid \theta_t)`, jointly for all latents (for a chain:
the Viterbi path), the M-step maximises :math:`\log p(x, \hat z \mid \theta)` (plus the log prior).
Both halves raise the classification log likelihood

.. math:: C(\theta) = \max_z \log p(x, z \mid \theta),

so it never falls, and the loop ends after finitely many changes of :math:`\hat z`. Components of
equal weight and equal spherical variance give k-means.

Reference: Celeux & Govaert (1992), *A classification EM algorithm for clustering and two stochastic
versions*, Computational Statistics & Data Analysis 14, 315-332.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.expectation.enumeration import Contraction, Factor
from ember.inference.initialisation import factor_weights, latent_dims
from ember.inference.plan import Plan
from ember.inference.statistics import Statistics

__all__ = ["HardEStep"]


class HardEStep:
    """The classification E-step of one plan: parameters to statistics of the best joint value.

    The ``log_likelihood`` of its statistics is the classification log likelihood.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._names = plan.structure.latent
        self._shapes = {n: [plan.sizes[s] for s in latent_dims(plan, n)] for n in self._names}
        probes = []
        for name in self._names:
            # A probe of zeros for each entry of a latent: its gradient marks the best value.
            kept = tuple(s for s in latent_dims(plan, name) if plan.sizes[s] > 1)
            probes.append(Factor(name, kept, plan.sites[name].plates, plan.scales[name]))
        latents = {s: (name, plan.scales[name]) for name, s in plan.latent_symbols.items()}
        self._contraction = Contraction((*plan.factors, *probes), latents, plan.sizes)

    def __call__(self, params: Mapping[str, Tensor]) -> Statistics:
        plan = self._plan
        return plan.completed(params, factor_weights(plan, self._assignments(params)))

    def _assignments(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One-hot responsibilities ``(*plates, K)`` of every latent at the best joint value."""
        plan = self._plan
        if not self._names:
            return {}
        with torch.no_grad():
            tensors = plan.tensors(plan.natural_parameters(params), plan.other_log_probs(params))
        with torch.enable_grad():
            probes = [
                torch.zeros([size for size in shape if size > 1]).requires_grad_()
                for shape in self._shapes.values()
            ]
            parts = self._contraction([*tensors, *probes], maximum=True)
            total = self._contraction.total(parts, weighted=False)
            gradients = torch.autograd.grad(total, probes)
        found = zip(self._shapes.items(), gradients, strict=True)
        # Below a poutine.scale the gradient is that weight: what counts is where it is.
        return {name: (g.reshape(shape) > 0).double() for (name, shape), g in found}
