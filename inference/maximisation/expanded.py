r"""The M-step with Gaussian latents stretched: PX-EM.

The model with latents multiplied by numbers :math:`\alpha` has the same likelihood at the
reduced parameters, so its expected log joint may be maximised instead: parameters at
:math:`\alpha = 1`, then :math:`\alpha`, then parameters once more with the statistics of stretched
latents. With :math:`n_k \log |\alpha_k|` for the change of variables no step lowers it; a prior of
the latents' spread may, so the value is compared, and the plain M-step kept where it is higher.

Reference: Liu, Rubin & Wu (1998), *Parameter expansion to accelerate EM: the PX-EM algorithm*,
Biometrika 85, 755-770.
"""

import dataclasses

import torch
from torch import Tensor

from ember.inference.factors.gaussian.expansion import Expansion
from ember.inference.maximisation.degeneracy import Degenerate
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.plan.statistics import Statistics

__all__ = ["expanded_m_step"]


def expanded_m_step(m_step: MStep, statistics: Statistics) -> dict[str, Tensor]:
    """Parameters that raise the expected log joint of the expanded model.

    Raises:
        Degenerate: If a component has collapsed or emptied.
    """
    params = m_step(statistics)
    for expansion in statistics.expansions:
        params = _stretched(m_step, statistics, expansion, params)
    return params


def _stretched(
    m_step: MStep, statistics: Statistics, expansion: Expansion, params: dict[str, Tensor]
) -> dict[str, Tensor]:
    with torch.no_grad():
        natural = {
            key: statistics.sums[key][0].natural_parameters(params) for key in expansion.pieces
        }
        alpha = expansion.best(natural)
        if alpha is None or not bool((alpha.isfinite() & (alpha != 0.0)).all()):
            return params
        changes = expansion.powers(alpha) - 1.0
        sums = dict(statistics.sums)
        for key, pieces in expansion.pieces.items():
            tied, total = sums[key]
            sums[key] = (tied, total + torch.einsum("e,ecp->cp", changes, pieces))
    stretched = dataclasses.replace(statistics, sums=sums)
    try:
        found = m_step(stretched)
    except Degenerate:
        return params
    with torch.no_grad():
        counts = expansion.stretches.counts.to(alpha)
        gain = expected_log_joint(stretched, found) - expected_log_joint(statistics, params)
        gain = gain + (counts * alpha.abs().log()).sum()
    return found if bool(gain > 0.0) else params
