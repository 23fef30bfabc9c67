"""Expected sufficient statistics: sums over data, so they add."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.gaussian.expansion import Expansion
from ember.inference.factors.opaque import OpaquePosterior
from ember.inference.factors.predictors import NearSite
from ember.inference.factors.second_order import SecondOrder
from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.families.exponential_form import FamilyParameter
from ember.inference.families.regression import Regression
from ember.inference.parameters.computed_rows import ComputedRows
from ember.inference.plan.priors import Prior

__all__ = ["Statistics"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the E-step learns: the log likelihood and the expected sufficient statistics.

    Both are sums over data, so ``stats + stats`` is the result for the data taken together,
    as long as both were computed at the same parameters. They hold tensors of the size of the
    parameters and no rows of the data, unless a site has no sufficient statistics; so they pickle,
    and may be computed elsewhere.

    Attributes:
        log_likelihood: ``log p(data | params)``, latent sites integrated out, a float.
        log_prior: The log prior density of ``params``; 0 for maximum likelihood. It belongs to
            the parameters, not to the data, so it does not add.
        params: The parameters at which the expectations were taken.
        sums: For all tied factors their cells, and the statistics ``(C, P)`` of each cell.
        opaque: Posteriors of sites without sufficient statistics, one entry a piece of data.
        near: Such sites to second order, where that takes the place of their posteriors.
        second_order: What such sites are expected to say, to second order, where rows have gone.
        prior: The prior of the parameters.
        m_step: The M-step that they are for.
        expansions: For components of Gaussian latents the pieces that grow as latents are
            stretched, where they have been asked for.
        others: The log priors of further pieces of data, which should be the same.

    Raises:
        ValueError: On addition of statistics from different models or parameters.
    """

    log_likelihood: float
    log_prior: float
    params: dict[str, Tensor]
    sums: dict[TieKey, tuple[TiedFactors, Tensor]]
    opaque: tuple[OpaquePosterior, ...]
    prior: Prior
    m_step: Callable[[Statistics], dict[str, Tensor]] | None = None
    others: tuple[float, ...] = ()
    expansions: tuple[Expansion, ...] = ()
    near: tuple[NearSite, ...] = ()
    second_order: SecondOrder | None = None

    @property
    def objective(self) -> float:
        """What EM ascends: the log likelihood, plus the log prior for MAP."""
        return self.log_likelihood + self.log_prior

    def __add__(self, other: object) -> Statistics:
        if not isinstance(other, Statistics):
            return NotImplemented
        if self.params.keys() != other.params.keys() or any(
            self.params[name].shape != value.shape or not torch.equal(self.params[name], value)
            for name, value in other.params.items()
        ):
            raise ValueError(
                "statistics add only if they were computed at the same parameters of one model; "
                "call e_step with the same params on each piece of data."
            )
        sums = dict(self.sums)
        for key, pooled in other.sums.items():
            sums[key] = _merge(sums[key], pooled) if key in sums else pooled
        return dataclasses.replace(
            self,
            log_likelihood=self.log_likelihood + other.log_likelihood,
            sums=sums,
            opaque=self.opaque + other.opaque,
            others=(*self.others, other.log_prior, *other.others),
            expansions=(),
            second_order=self._to_second_order(other),
        )

    def _to_second_order(self, other: Statistics) -> SecondOrder | None:
        if self.second_order is None or other.second_order is None:
            return self.second_order or other.second_order
        return self.second_order + other.second_order

    def __repr__(self) -> str:
        count = 1 + len(self.others)
        pieces = f", {count} pieces of data" if count > 1 else ""
        return f"Statistics(log_likelihood={self.log_likelihood:.6f}{pieces})"

    def __radd__(self, other: object) -> Statistics:
        return self if other == 0 else NotImplemented  # so that sum([...]) works


def _same_nodes(one: FamilyParameter, other: FamilyParameter) -> bool:
    if isinstance(one.table, ComputedRows) and isinstance(other.table, ComputedRows):
        return one.table.same_nodes(other.table)
    return True


def _merge(
    one: tuple[TiedFactors, Tensor], other: tuple[TiedFactors, Tensor]
) -> tuple[TiedFactors, Tensor]:
    """Adds statistics cell by cell, references reconciled."""
    (left, left_statistics), (right, right_statistics) = one, other
    if not all(_same_nodes(*pair) for pair in zip(left.parameters, right.parameters, strict=True)):
        raise ValueError(
            "statistics of a latent integrated on nodes add only where the nodes are the same, and "
            "these follow the prior of the rows at hand; give every piece of data rows of all "
            "groups."
        )
    cells, place = torch.unique(torch.cat([left.cells, right.cells]), dim=0, return_inverse=True)
    in_left, in_right = place[: len(left.cells)], place[len(left.cells) :]
    reference, reach, frame = None, None, None
    if left.frame is not None and right.frame is not None:
        lines = left.frame.lines_of(right.frame).new_zeros(len(cells), left.frame.line.shape[-1])
        lines[in_right] = left.frame.lines_of(right.frame)
        lines[in_left] = left.frame.line
        frame = left.frame.about(lines)
        turn = left.frame.about(lines[in_right]).from_other(right.frame)
        right_statistics = Regression.turned(right_statistics, turn)
    if left.reference is not None and right.reference is not None:
        reference = left.reference.new_zeros((len(cells), *left.reference.shape[1:]))
        reference[in_right] = right.reference
        reference[in_left] = left.reference
        moved = right.reference - reference[in_right]
        right_statistics = left.family.shift(right_statistics, moved)
        if left.reach is not None and right.reach is not None and len(left.parameters) > 1:
            reach = torch.zeros_like(reference)
            reach[in_left] = left.reach
            reach[in_right] = torch.maximum(reach[in_right], right.reach + moved.abs())
    total = left_statistics.new_zeros((len(cells), left_statistics.shape[-1]))
    total.index_add_(0, in_left, left_statistics)
    total.index_add_(0, in_right, right_statistics)
    return TiedFactors(
        left.key, left.family, left.parameters, cells, reference, reach, frame, left.least_share
    ), total
