"""Expected sufficient statistics: sums over data, so they add."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ember.inference.design import Frame
from ember.inference.families import Family, Regression
from ember.inference.slots import Slot

if TYPE_CHECKING:
    from ember.inference.plan import Plan

__all__ = ["Group", "Part", "Statistics"]


@dataclass(frozen=True, eq=False)
class Group:
    """Sites of one family that read the same slots; their statistics are pooled, cell by cell.

    A *cell* is a combination of slot rows: ``cells`` has shape ``(C, slots)``. ``reference`` is
    subtracted from the data and from the location, so that squares lose no digits. ``reach`` says
    how far from it the data of a cell lie (see ``residuals.py``). A regression has a ``frame`` of
    its features instead, with a line of reference for each cell.
    """

    key: tuple[Any, ...]
    family: Family
    slots: tuple[Slot, ...]
    cells: Tensor
    reference: Tensor | None = None
    reach: Tensor | None = None
    frame: Frame | None = None

    def locations(self, params: Mapping[str, Tensor]) -> Tensor:
        """The location of every cell, of a family that has one."""
        return self.slots[0].values(params)[self.cells[:, 0]]

    def slot_values(self, params: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The value of each slot in each cell; a location is relative to the reference."""
        values = [slot.values(params)[self.cells[:, i]] for i, slot in enumerate(self.slots)]
        if self.frame is not None:
            values[0] = self.frame.relative(values[0])
        if self.reference is not None:
            values[0] = values[0] - self.reference
        return tuple(values)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a group lives as long as its plan
    def rows(self, slot: int, start: int, count: int) -> tuple[Tensor, Tensor] | None:
        """Cells that read rows ``start`` to ``start + count`` of a slot's table, and which row.

        None where cell ``i`` reads row ``i`` and nothing needs to be moved.
        """
        rows = self.cells[:, slot] - start
        if torch.equal(rows, torch.arange(count)):
            return None
        mine = (rows >= 0) & (rows < count) & (self.cells[:, slot] >= 0)
        cells = mine.nonzero().reshape(-1)
        return cells, rows[cells]

    def natural_parameters(self, params: Mapping[str, Tensor]) -> Tensor:
        """``eta`` of every cell, shape ``(C, P)``."""
        return self.family.natural_parameters(*self.slot_values(params))

    def contribution(
        self,
        slot: int,
        statistics: Tensor,
        params: Mapping[str, Tensor],
        origin: Tensor | None = None,
    ) -> list[Tensor]:
        """The canonical coefficients of one slot in each cell.

        Those of a location are of its difference from the ``origin``, one for each cell.
        """
        values = self.slot_values(params)
        coefficients = self.family.contribution(slot, statistics, values)
        if slot == 0 and origin is not None:
            linear, precision = coefficients
            moved = -origin if self.reference is None else self.reference - origin
            if self.slots[0].kind == "vector":
                return [linear + (precision @ moved.unsqueeze(-1)).squeeze(-1), precision]
            return [linear + precision * moved, precision]
        return coefficients

    def resolution(self) -> Tensor | None:
        """The variance of the rounding of each cell's data, for families with location and scale.

        Data that differ by less than their last digits do not differ.
        """
        if self.reach is None or len(self.slots) < 2:
            return None
        if self.frame is not None:
            # What a line says at the data is rounded as the data are, feature by feature.
            line = (self.reach[:, :-1] * self.frame.line.abs()).sum(-1)
            size = self.reach[:, -1] + line
            return (4.0 * torch.finfo(size.dtype).eps * size).square()
        if self.reference is None:
            return None
        size = self.reach + self.reference.abs()
        return (2.0 * torch.finfo(size.dtype).eps * size).square()


@dataclass(frozen=True)
class Part:
    """Posteriors of one piece of data, for sites whose statistics are not known in advance."""

    plan: Plan
    posteriors: dict[str, Tensor]
    log_prior: float = 0.0


@dataclass(frozen=True)
class Statistics:
    """What the E-step learns: the log likelihood and the expected sufficient statistics.

    Both are sums over data, so ``stats + stats`` is the result for the data taken together,
    as long as both were computed at the same parameters.

    Attributes:
        log_likelihood: ``log p(data | params)``, latent sites integrated out, a float.
        log_prior: The log prior density of ``params``; 0 for maximum likelihood. It belongs to
            the parameters, not to the data, so it does not add.
        params: The parameters at which the expectations were taken.
        groups: Statistics ``(C, P)`` of each exponential family, with its cells.
        parts: Posteriors of sites without sufficient statistics, one entry a piece of data.

    Raises:
        ValueError: On addition of statistics from different models or parameters.
    """

    log_likelihood: float
    log_prior: float
    params: dict[str, Tensor]
    groups: dict[tuple[Any, ...], tuple[Group, Tensor]]
    parts: tuple[Part, ...]

    @property
    def objective(self) -> float:
        """What EM ascends: the log likelihood, plus the log prior for MAP."""
        return self.log_likelihood + self.log_prior

    @property
    def plan(self) -> Plan:
        """The plan of the first piece of data: its priors and its updates."""
        return self.parts[0].plan

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
        groups = dict(self.groups)
        for key, (group, statistics) in other.groups.items():
            if key in groups:
                groups[key] = _merge(groups[key], (group, statistics))
            else:
                groups[key] = (group, statistics)
        return Statistics(
            self.log_likelihood + other.log_likelihood,
            self.log_prior,
            self.params,
            groups,
            self.parts + other.parts,
        )

    def __repr__(self) -> str:
        pieces = f", {len(self.parts)} pieces of data" if len(self.parts) > 1 else ""
        return f"Statistics(log_likelihood={self.log_likelihood:.6f}{pieces})"

    def __radd__(self, other: object) -> Statistics:
        return self if other == 0 else NotImplemented  # so that sum([...]) works


def _merge(one: tuple[Group, Tensor], other: tuple[Group, Tensor]) -> tuple[Group, Tensor]:
    """Adds statistics cell by cell, references reconciled."""
    (left, left_statistics), (right, right_statistics) = one, other
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
        if left.reach is not None and right.reach is not None and len(left.slots) > 1:
            reach = torch.zeros_like(reference)
            reach[in_left] = left.reach
            reach[in_right] = torch.maximum(reach[in_right], right.reach + moved.abs())
    total = left_statistics.new_zeros((len(cells), left_statistics.shape[-1]))
    total.index_add_(0, in_left, left_statistics)
    total.index_add_(0, in_right, right_statistics)
    return Group(left.key, left.family, left.slots, cells, reference, reach, frame), total
