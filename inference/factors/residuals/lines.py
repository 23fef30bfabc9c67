"""Regressions by their residuals about the line of each cell itself; see ``normal.py``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.exponential import statistics_of
from ember.inference.factors.residuals.normal import Cells, Residuals, added, by_rows
from ember.inference.factors.tied import TiedFactors
from ember.inference.families.regression import Regression
from ember.inference.numerics.design import Frame
from ember.inference.numerics.log_space import LOG_2PI, safe_log
from ember.inference.numerics.shapes import append_dims, broadcast_shapes, prepend_dims
from ember.inference.reading.site import Site

__all__ = ["LineResiduals", "compile_lines", "density_lost", "line_sums", "scatter_lost"]


@dataclass(frozen=True)
class LineResiduals(Residuals):
    """A regression, entry by entry; ``data`` are measured from the pooled line.

    Attributes:
        features: The features in the coordinates of the frame, ``(*batch, F)``.
        factor: The known factor of the precision of every entry.
    """

    features: Tensor
    factor: Tensor

    def log_prob(self, at: Cells) -> Tensor:
        """The log probability, with dims ``self.dims``."""
        rate = at.scales[self.cells]
        squares = self.factor * self._about(at.locations).square()
        return self._finished(0.5 * (safe_log(rate) - LOG_2PI - rate * squares))

    def _about(self, lines: Tensor) -> Tensor:
        return self.data - (self.features * lines[self.cells]).sum(-1)

    def products(self, posterior: Tensor, lines: Tensor) -> list[Tensor]:
        """The weight of every cell, and its sum of ``u u'`` with residuals about its line."""
        weight = append_dims(self._spread(posterior), len(self.inner)) * self.weights
        residual = self._about(lines)
        full = broadcast_shapes(
            residual.shape, weight.shape, self.cells.shape, self.factor.shape, self.inner
        )
        features = self.features.expand(*full, self.features.shape[-1])
        both = torch.cat([features, residual.expand(full).unsqueeze(-1)], -1)
        both = both * self.factor.sqrt().unsqueeze(-1)
        kept = [i for i in range(len(full)) if self.cells.size(i) > 1]
        rows = by_rows(both, kept, len(full))
        weight = by_rows(weight.expand(full), kept, len(full)).unsqueeze(-1)
        found = [weight.sum((1, 2)), (weight * rows).mT @ rows]
        return added(found, self.cells.reshape(-1), len(lines))


def compile_lines(
    site: Site, value: Tensor, cells: Tensor, dims: tuple[str, ...], frame: Frame
) -> LineResiduals:
    """Lays out the data of a regression once.

    Args:
        site: The site.
        value: Its value, with numbers where entries are masked.
        cells: The cell of every entry, at full rank.
        dims: The dims of the factor's tensor.
        frame: The frame of the tied factors; their cells share one line of reference.
    """
    assert site.form is not None
    assert site.form.design is not None
    statistics, base = statistics_of(
        site, site.value, dataclasses.replace(frame, line=frame.line[0])
    )
    x, y, factor = site.form.design(value)
    rank = cells.dim()
    features = frame.features(x)
    data = y - features @ frame.line[0]
    return LineResiduals(
        site.form.family,
        cells,
        prepend_dims(data, rank),
        statistics[..., 0],
        base,
        site.layout.outer,
        site.inner_shape,
        dims,
        prepend_dims(features, rank + 1),
        prepend_dims(factor, rank),
    )


def line_sums(
    tied: TiedFactors, at: Cells, pieces: Sequence[tuple[LineResiduals, Tensor]]
) -> tuple[TiedFactors, Tensor]:
    """Expected statistics about the best line of each cell, which is its reference."""
    lines = at.locations
    _, squares = _summed(pieces, lines)
    lines = lines + _best(squares)
    count, squares = _summed(pieces, lines)
    rows, columns = torch.triu_indices(*squares.shape[-2:], device=squares.device)
    statistics = torch.cat([count[:, None], squares[:, rows, columns]], -1)
    assert tied.frame is not None
    frame = tied.frame.about(tied.frame.line + lines)
    return dataclasses.replace(tied, frame=frame), statistics


def _summed(pieces: Sequence[tuple[LineResiduals, Tensor]], lines: Tensor) -> list[Tensor]:
    each = [found.products(posterior, lines) for found, posterior in pieces]
    return [torch.stack(same).sum(0) for same in zip(*each, strict=True)]


def _best(squares: Tensor) -> Tensor:
    """The line of least squares of every cell, the shortest where several are."""
    inverse = torch.linalg.pinv(squares[:, :-1, :-1], rtol=1e-12, hermitian=True)
    line: Tensor = (inverse @ squares[:, :-1, -1:]).squeeze(-1)
    return line


def density_lost(tied: TiedFactors, values: tuple[Tensor, ...], largest: float) -> Tensor:
    """Whether the log densities of each cell are small differences of large terms."""
    if tied.reach is None:
        return tied.cells.new_zeros(len(tied.cells), dtype=torch.bool)
    lines, rate = values
    terms = rate * (tied.reach[:, -1] + (tied.reach[:, :-1] * lines.abs()).sum(-1)).square()
    return terms > largest


def scatter_lost(sums: Tensor, width: int, largest: float) -> Tensor:
    """Whether what a line leaves is a small difference of large sums, cell by cell."""
    squares = Regression.products(sums, width + 1)
    factor, failed = torch.linalg.cholesky_ex(squares)
    lost: Tensor = (failed > 0) | (squares[:, -1, -1] > largest * factor[:, -1, -1].square())
    if not bool(lost.any()):
        return lost
    # Where features determine each other, or a cell is empty, there is no factor to go by.
    left = squares[:, -1, -1] - (_best(squares) * squares[:, :-1, -1]).sum(-1)
    return squares[:, -1, -1] > largest * left.clamp_min(0.0)
