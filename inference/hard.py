r"""Classification EM: the E-step takes the most probable value of the latents instead of averaging.

With :math:`\hat z = \arg\max_z \log p(x, z \mid \theta_t)`, jointly for all latents (for a chain:
the Viterbi path), the M-step maximises :math:`\log p(x, \hat z \mid \theta)` (plus the log prior).
Both halves raise the classification log likelihood

.. math:: C(\theta) = \max_z \log p(x, z \mid \theta),

whose gradient with respect to the natural parameters is the statistics at :math:`\hat z`, as that
of the log evidence is their expectation: the E-step is the same contraction with the maximum in
place of the sum. The objective never falls, and the loop ends after finitely many changes of
:math:`\hat z`. Components of equal weight and equal spherical variance give k-means.

Reference: Celeux & Govaert (1992), *A classification EM algorithm for clustering and two stochastic
versions*, Computational Statistics & Data Analysis 14, 315-332.
"""

import torch

from ember.inference.plan import Params, Plan
from ember.inference.statistics import Statistics

__all__ = ["hard_e_step"]


def hard_e_step(plan: Plan, params: Params) -> Statistics:
    """The statistics of the best joint value of the latents.

    Their ``log_likelihood`` is the classification log likelihood.
    """
    with torch.no_grad():
        natural = plan.natural_parameters(params)
    return plan.general_e_step(params, natural, maximum=True)
