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
from collections.abc import Sequence

import torch
from torch import Tensor

from ember.inference.factors.gaussian.expansion import Expansion
from ember.inference.families.regression import Regression
from ember.inference.maximisation.degeneracy import Degenerate
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.plan.loadings import Loadings
from ember.inference.plan.statistics import Statistics

__all__ = ["expanded_m_step"]


def expanded_m_step(
    m_step: MStep, statistics: Statistics, loadings: Sequence[Loadings] = ()
) -> dict[str, Tensor]:
    """Parameters that raise the expected log joint of the expanded model.

    Args:
        m_step: The M-step.
        statistics: Expected statistics.
        loadings: Factors of fixed spread.

    Raises:
        Degenerate: If a component has collapsed or emptied.
    """
    params = m_step(statistics)
    for expansion in statistics.expansions:
        params = _stretched(m_step, statistics, expansion, params)
    for each in loadings:
        params = _turned(m_step, statistics, each, params)
    return params


def _turned(
    m_step: MStep, statistics: Statistics, loadings: Loadings, params: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The M-step for factors that have been made uncorrelated, of unit variance."""
    with torch.no_grad():
        squares, count = torch.zeros(()), torch.zeros(())
        for key, columns in loadings.columns.items():
            tied, sums = statistics.sums[key]
            products = Regression.products(sums, tied.width + 1)
            places = torch.tensor(columns, device=sums.device)
            squares = squares + products[:, places][:, :, places].sum(0)
            count = count + sums[:, 0].sum()
        covariance = squares / count
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if int(failed):
            return params
        one = torch.eye(len(covariance), dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, one, upper=False)
        changed = dict(statistics.sums)
        for key, columns in loadings.columns.items():
            tied, sums = statistics.sums[key]
            turn = torch.eye(tied.width + 1, dtype=sums.dtype, device=sums.device)
            places = torch.tensor(columns, device=sums.device)
            turn[places.unsqueeze(-1), places] = inverse
            changed[key] = (tied, Regression.turned(sums, turn.expand(len(sums), -1, -1)))
    turned = dataclasses.replace(statistics, sums=changed)
    try:
        found = m_step(turned)
    except Degenerate:
        return params
    with torch.no_grad():
        gain = expected_log_joint(turned, found) - expected_log_joint(statistics, params)
        excess = covariance.trace() - 2.0 * factor.diagonal().log().sum() - len(covariance)
        gain = gain + 0.5 * loadings.count * excess
    return found if bool(gain > 0.0) else params


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
