"""Sites tied by their parameters: those of one family that read the same entries."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import torch
from torch import Tensor

from ember.inference.families.exponential_form import FamilyParameter
from ember.inference.families.family import Family
from ember.inference.families.normal import Normal
from ember.inference.families.regression import Regression
from ember.inference.numerics.design import Frame
from ember.inference.numerics.memo import Memo
from ember.inference.parameters.affine_map import ParameterEntries
from ember.inference.parameters.batching import Shapes

__all__ = ["SiteCells", "TieKey", "TiedFactors"]


class TieKey(NamedTuple):
    """The name of tied factors: their family, and a digest of the entries that they read.

    It is the same for the same model wherever it is read, so that statistics may travel.
    """

    family: str
    reads: str


@dataclass(frozen=True, eq=False)
class SiteCells:
    """Of one site: what it is tied to, the cell of every entry, and what data are measured from."""

    key: TieKey
    index: Tensor
    reference: Tensor | Frame | float


@dataclass(frozen=True, eq=False)
class TiedFactors(Memo):
    """Sites of one family that read the same entries; their statistics are pooled, cell by cell.

    A *cell* is a combination of family parameter rows: ``cells`` has shape ``(C, family
    parameters)``. ``reference`` is subtracted from the data and from the location, so that squares
    lose no digits. ``reach`` says how far from it the data of a cell lie (see
    ``factors/residuals/normal.py``). A regression has a ``frame`` of its features instead, with a
    line of reference for each cell. ``least_share`` is the share of the spread of observations that
    a variance keeps at least: where latents explain them, what is left has lost its digits below.
    Where it ``is_centred`` the reference is the present location.
    """

    key: TieKey
    family: Family
    parameters: tuple[FamilyParameter, ...]
    cells: Tensor
    reference: Tensor | None = None
    reach: Tensor | None = None
    frame: Frame | None = None
    least_share: float = 0.0
    is_centred: bool = False

    def locations(self, params: Mapping[str, Tensor]) -> Tensor:
        """The location of every cell, of a family that has one."""
        return self._gathered(0, params)

    def parameter_values(self, params: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The value of each parameter in each cell; a location is relative to the reference."""
        return tuple(self.value(i, params) for i in range(len(self.parameters)))

    def value(self, position: int, params: Mapping[str, Tensor]) -> Tensor:
        """The value of one parameter in each cell."""
        values = self._gathered(position, params)
        if position > 0:
            return values
        if self.frame is not None:
            values = self.frame.relative(values)
        return values if self.reference is None else values - self.reference

    def _gathered(self, position: int, params: Mapping[str, Tensor]) -> Tensor:
        rows = self.parameters[position].values(params)
        if self.in_order[position] and rows.shape[0] == self.cells.shape[0]:
            return rows
        return rows[self.cells[:, position]]

    @functools.cached_property
    def in_order(self) -> tuple[bool, ...]:
        """For each parameter, whether cell ``i`` reads its row ``i``."""
        every = torch.arange(len(self.cells), device=self.cells.device)
        return tuple(torch.equal(column, every) for column in self.cells.unbind(1))

    @functools.cached_property
    def _is_at_zero(self) -> bool:
        """Whether all locations are known to be zero, from where the data are measured."""
        location = self.parameters[0]
        measured = self.reference is not None or self.frame is not None
        return not measured and location.table is None and not bool(location.values({}).any())

    def centred(self, locations: Tensor) -> TiedFactors:
        """The same, measured from the present locations; what follows from cells stays known."""
        moved = dataclasses.replace(self, reference=locations, is_centred=True)
        moved.__dict__["in_order"] = self.in_order
        moved._made.update(self._made)
        return moved

    def rows(self, position: int, start: int, count: int) -> tuple[Tensor, Tensor] | None:
        """Cells that read rows ``start`` to ``start + count`` of one parameter, and which row.

        None where cell ``i`` reads row ``i`` and nothing needs to be moved.
        """
        return self.once(_rows_read, position, start, count)

    def batched(self, shapes: Shapes, count: int) -> TiedFactors:
        """The same for several values of every parameter: the cells of each value in turn."""
        each = zip(self.cells.unbind(1), self.parameters, strict=True)
        columns = [p.batched_index(column, shapes, count).reshape(-1) for column, p in each]
        reference, reach = (
            None if known is None else known.repeat(count, *(1,) * (known.dim() - 1))
            for known in (self.reference, self.reach)
        )
        frame = None if self.frame is None else self.frame.about(self.frame.line.repeat(count, 1))
        parameters = tuple(parameter.batched(shapes, count) for parameter in self.parameters)
        cells = torch.stack(columns, 1)
        return TiedFactors(
            self.key, self.family, parameters, cells, reference, reach, frame, self.least_share
        )

    def natural_parameters(self, params: Mapping[str, Tensor]) -> Tensor:
        """``eta`` of every cell, shape ``(C, P)``."""
        return self.family.natural_parameters(*self.parameter_values(params))

    def contribution(
        self,
        position: int,
        statistics: Tensor,
        params: Mapping[str, Tensor],
        origin: Tensor | None = None,
    ) -> list[Tensor]:
        """The coefficients of one parameter of the family in each cell; see ``kinds.py``.

        Those of a location are of its difference from the ``origin``, one for each cell.
        """
        if position == 1 and (self.is_centred or self._is_at_zero):
            about = self.family.scatter(statistics)
            if about is not None:
                return about
        values = CellValues(self, params)
        coefficients = self.family.contribution(position, statistics, values)
        if position == 0 and origin is not None:
            linear, precision = coefficients
            moved = -origin if self.reference is None else self.reference - origin
            return [linear + self.parameters[0].kind.times(precision, moved), precision]
        return coefficients

    def least(self, statistics: Tensor) -> Tensor | None:
        """Of each cell, what its sum of squared residuals is at least, halved; None if nothing."""
        if not self.least_share or not isinstance(self.family, (Normal, Regression)):
            return None
        return 0.5 * self.least_share * (statistics[:, 0] * self.spread(statistics)).nan_to_num(0.0)

    def spread(self, statistics: Tensor) -> Tensor:
        """The mean square of what is observed in each cell about the reference, ``(C,)``.

        NaN for families of which the statistics do not say it.
        """
        n = statistics[:, 0]
        if isinstance(self.family, Regression):
            dim = self.width + 1
            return self.family.products(statistics, dim)[:, -1, -1] / n
        if isinstance(self.family, Normal):
            return statistics[:, 2] / n
        return torch.full_like(n, torch.nan)

    @functools.cached_property
    def width(self) -> int:
        """The number of features of a regression."""
        table = self.parameters[0].table
        assert isinstance(table, ParameterEntries)
        return len(table.entries[0])

    @functools.cached_property
    def resolution(self) -> Tensor | None:
        """The variance of the rounding of each cell's data, for families with location and scale.

        Data that differ by less than their last digits do not differ.
        """
        if self.reach is None or len(self.parameters) < 2:
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


def _rows_read(
    tied: TiedFactors, position: int, start: int, count: int
) -> tuple[Tensor, Tensor] | None:
    rows = tied.cells[:, position] - start
    if torch.equal(rows, torch.arange(count, device=rows.device)):
        return None
    inside = (rows >= 0) & (rows < count) & (tied.cells[:, position] >= 0)
    cells = inside.nonzero().reshape(-1)
    return cells, rows[cells]


@dataclass(frozen=True, eq=False)
class CellValues(Sequence[Tensor]):
    """The values of the parameters in each cell, each computed when it is asked for."""

    tied: TiedFactors
    params: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.tied.parameters)

    @overload
    def __getitem__(self, position: int) -> Tensor: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, position: int | slice) -> Tensor | tuple[Tensor, ...]:
        if isinstance(position, slice):
            return self.tied.parameter_values(self.params)[position]
        return self.tied.value(position, self.params)
