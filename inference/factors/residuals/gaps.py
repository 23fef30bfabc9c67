"""Multivariate normal rows with missing entries, by their residuals; see ``normal.py``."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.residuals.normal import Cells, Residuals, added, by_rows
from ember.inference.numerics.log_space import LOG_2PI, safe_log
from ember.inference.numerics.observed_density import row_patterns
from ember.inference.numerics.shapes import append_dims, broadcast_shapes

__all__ = ["GapResiduals"]


@dataclass(frozen=True)
class GapResiduals(Residuals):
    """Rows of which entries are missing, ``(*batch, D)``, those shown by a factor of their own.

    With the rows of a square root of the covariance in the order (shown, missing), its triangular
    factor has the factor of the shown entries' covariance in the first corner, the conditional
    mean of the missing ones below it, and a root of their conditional covariance in the last; of a
    precision, in the order (missing, shown), it is the other way round.
    """

    missing: Tensor

    def log_prob(self, at: Cells) -> Tensor:
        """That of the entries shown."""
        full, kept, cells, patterns = self._layout
        data = by_rows(self.data.expand(*full, -1), kept, len(full))
        out = data.new_zeros(data.shape[:2])
        for hidden, rows, columns in patterns:
            part = _Completion.of(at, cells[rows], hidden)
            block = data[rows][:, columns] - at.locations[cells[rows]].unsqueeze(1)
            out[rows.unsqueeze(-1), columns] = part.log_prob(block)
        order = [*kept, *(i for i in range(len(full)) if i not in kept)]
        out = out.reshape([full[i] for i in order])
        return self._finished(out.permute([order.index(i) for i in range(len(full))]))

    def moments(self, at: Cells, posterior: Tensor, centre: Tensor, squares: bool) -> list[Tensor]:
        """Those of the rows completed by their conditional expectation."""
        full, kept, cells, patterns = self._layout
        weight = append_dims(self._spread(posterior), len(self.inner)) * self.weights
        weight = by_rows(weight.expand(full), kept, len(full))
        data = by_rows(self.data.expand(*full, -1), kept, len(full))
        dim = data.shape[-1]
        found = [data.new_zeros(len(centre), *(dim,) * i) for i in range(3 if squares else 2)]
        for hidden, rows, columns in patterns:
            own = cells[rows]
            part = _Completion.of(at, own, hidden)
            location = at.locations[own].unsqueeze(1)
            block = data[rows][:, columns]
            filled = part.filled(block - location) + location - centre[own].unsqueeze(1)
            filled = torch.where(hidden, filled, block - centre[own].unsqueeze(1))
            share = weight[rows][:, columns].unsqueeze(-1)
            sums = [share.sum((1, 2)), (share * filled).sum(1)]
            if squares:
                spread = share.sum(1, keepdim=True) * part.covariance
                sums.append((share * filled).mT @ filled + spread)
            found = [a + b for a, b in zip(found, added(sums, own, len(centre)), strict=True)]
        return found

    @functools.cached_property
    def _layout(self) -> tuple[torch.Size, list[int], Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """All batch dims, those of rows, the cell of each row; patterns, their rows and columns."""
        batch = (self.cells.shape, self.data.shape[:-1], self.missing.shape[:-1])
        full = broadcast_shapes(*batch, self.weights.shape, self.inner)
        kept = [i for i in range(len(full)) if self.cells.size(i) > 1]
        apart = all(self.missing.size(i) == 1 for i in kept)
        kept = kept if apart else list(range(len(full)))
        spread = [full[i] if i in kept else 1 for i in range(len(full))]
        cells = by_rows(self.cells.expand(spread), kept, len(full)).reshape(-1)
        missing = by_rows(self.missing.expand(*full, -1), kept, len(full))
        every = torch.arange(len(cells), device=cells.device)
        hidden, pattern = row_patterns(missing[0] if apart else missing[:, 0])
        patterns = []
        for i, own in enumerate(hidden):
            places = (pattern == i).nonzero().reshape(-1)
            block = (every, places) if apart else (places, cells.new_zeros(1))
            patterns.append((own, *block))
        return full, kept, cells, patterns


@dataclass(frozen=True)
class _Completion:
    """Of some cells, what one pattern of missing entries makes of their normal distribution.

    Attributes:
        hidden: The pattern ``(D,)``.
        whitener: Of the entries shown, ``(C, O, O)``.
        log_det: Its log determinant.
        slopes: Of the conditional mean of the others, ``(C, M, O)``.
        covariance: Their conditional covariance, zero elsewhere, ``(C, D, D)``.
    """

    hidden: Tensor
    whitener: Tensor
    log_det: Tensor
    slopes: Tensor
    covariance: Tensor

    @staticmethod
    def of(at: Cells, cells: Tensor, hidden: Tensor) -> "_Completion":
        out, shown = hidden.nonzero().reshape(-1), (~hidden).nonzero().reshape(-1)
        order = torch.cat([out, shown] if at.is_precision else [shown, out])
        roots = at.scales[cells][:, order]
        lower = torch.linalg.qr(roots.mT).R.mT
        cut = len(out) if at.is_precision else len(shown)
        one = torch.eye(cut, dtype=lower.dtype, device=lower.device).expand(len(lower), cut, cut)
        first, cross, last = lower[:, :cut, :cut], lower[:, cut:, :cut], lower[:, cut:, cut:]
        if at.is_precision:
            whitener, sign = last.mT, 1.0
            slopes = -torch.linalg.solve_triangular(first.mT, cross.mT, upper=True)
            half = torch.linalg.solve_triangular(first.mT, one, upper=True)
        else:
            whitener, sign = torch.linalg.solve_triangular(first, one, upper=False), -1.0
            slopes, half = cross @ whitener, last
        factor = last if at.is_precision else first
        log_det = sign * safe_log(factor.diagonal(dim1=-2, dim2=-1).abs()).sum(-1)
        covariance = lower.new_zeros(lower.shape)
        covariance[:, out.unsqueeze(-1), out] = half @ half.mT
        return _Completion(hidden, whitener, log_det, slopes, covariance)

    def log_prob(self, residual: Tensor) -> Tensor:
        """Of rows ``(C, N, D)``, less the location."""
        white = residual[..., ~self.hidden] @ self.whitener.mT
        constant = self.log_det.unsqueeze(-1) - 0.5 * white.shape[-1] * LOG_2PI
        return constant - 0.5 * white.square().sum(-1)

    def filled(self, residual: Tensor) -> Tensor:
        """The same rows, with the conditional means of missing entries in their places."""
        filled = residual.clone()
        filled[..., self.hidden] = residual[..., ~self.hidden] @ self.slopes.mT
        return filled
