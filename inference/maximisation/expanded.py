r"""The M-step with Gaussian latents stretched: PX-EM.

The model with latents multiplied by numbers :math:`\alpha` has the same likelihood at the
reduced parameters, so its expected log joint may be maximised instead: parameters at
:math:`\alpha = 1`, then :math:`\alpha`, then parameters once more with the statistics of stretched
latents. With :math:`n_k \log |\alpha_k|` for the change of variables no step lowers it; a prior of
the latents' spread may, so the value is compared, and the plain M-step kept where it is higher.
Several changes follow each other, each from the statistics and parameters that the last has left.

Reference: Liu, Rubin & Wu (1998), *Parameter expansion to accelerate EM: the PX-EM algorithm*,
Biometrika 85, 755-770.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ember.inference.factors.gaussian.expansion import Expansion
from ember.inference.factors.tied import TiedFactors, TieKey
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
    at = _Place(statistics, m_step(statistics))
    stretches = [partial(_stretched, expansion) for expansion in statistics.expansions]
    turns = [partial(_turned, each) for each in loadings]
    for change in (*stretches, *turns):
        changed = change(at)
        if changed is not None:
            at = _better(m_step, at, *changed)
    return at.params


class _Place(NamedTuple):
    """Parameters, and the statistics of latents changed so far whose M-step has made them."""

    statistics: Statistics
    params: dict[str, Tensor]


Sums = dict[TieKey, tuple[TiedFactors, Tensor]]
Changed = tuple[Sums, Tensor]  # the sums of changed latents, and the logarithm of the change


def _better(m_step: MStep, at: _Place, sums: Sums, change: Tensor) -> _Place:
    """The place that the sums of changed latents lead to, if it is higher; else the one at hand."""
    statistics = dataclasses.replace(at.statistics, sums=sums)
    try:
        found = m_step(statistics)
    except Degenerate:
        return at
    with torch.no_grad():
        before = expected_log_joint(at.statistics, at.params)
        gain = expected_log_joint(statistics, found) - before + change
    return _Place(statistics, found) if bool(gain > 0.0) else at


def _stretched(expansion: Expansion, at: _Place) -> Changed | None:
    """Latents multiplied by the numbers that suit the data best."""
    with torch.no_grad():
        sums = dict(at.statistics.sums)
        natural = {key: sums[key][0].natural_parameters(at.params) for key in expansion.pieces}
        alpha = expansion.best(natural)
        if alpha is None or not bool((alpha.isfinite() & (alpha != 0.0)).all()):
            return None
        changes = expansion.powers(alpha) - 1.0
        for key, pieces in expansion.pieces.items():
            tied, total = sums[key]
            sums[key] = (tied, total + torch.einsum("e,ecp->cp", changes, pieces))
        counts = expansion.stretches.counts.to(alpha)
        return sums, (counts * alpha.abs().log()).sum()


def _turned(loadings: Loadings, at: _Place) -> Changed | None:
    """Factors made uncorrelated, of unit variance."""
    with torch.no_grad():
        sums = dict(at.statistics.sums)
        squares, count = torch.zeros(()), torch.zeros(())
        for key, columns in loadings.columns.items():
            tied, total = sums[key]
            products = Regression.products(total, tied.width + 1)
            places = torch.tensor(columns, device=total.device)
            squares = squares + products[:, places][:, :, places].sum(0)
            count = count + total[:, 0].sum()
        covariance = squares / count
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if int(failed):
            return None
        one = torch.eye(len(covariance), dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, one, upper=False)
        for key, columns in loadings.columns.items():
            tied, total = sums[key]
            turn = torch.eye(tied.width + 1, dtype=total.dtype, device=total.device)
            places = torch.tensor(columns, device=total.device)
            turn[places.unsqueeze(-1), places] = inverse
            sums[key] = (tied, Regression.turned(total, turn.expand(len(total), -1, -1)))
        excess = covariance.trace() - 2.0 * factor.diagonal().log().sum() - len(covariance)
        return sums, 0.5 * loadings.count * excess
