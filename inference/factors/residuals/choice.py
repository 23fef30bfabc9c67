"""Which sites are had by their residuals, and when: see ``factors/residuals/normal.py``."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.factors.residuals.compiling import compile_residuals, has_residuals
from ember.inference.factors.residuals.digits import density_lost, scatter_lost
from ember.inference.factors.residuals.lines import (
    LineResiduals,
    line_sums,
)
from ember.inference.factors.residuals.normal import NORMAL, Cells, Residuals
from ember.inference.factors.tied import SiteCells, TiedFactors, TieKey
from ember.inference.families.normal import Location, Normal
from ember.inference.families.regression import Regression
from ember.inference.reading.site import Site

__all__ = ["ResidualFactors"]


Params = Mapping[str, Tensor]
Values = Mapping[TieKey, tuple[Tensor, ...]]


class ResidualFactors:
    """The sites of a plan that can be had by their residuals, compiled when they first are.

    Args:
        sites: All sites.
        cells: What each site in exponential-family form is tied to, and the cell of every entry.
        dims: The dims of each factor's tensor.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        cells: Mapping[str, SiteCells],
        dims: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._sites, self._cells, self._dims = sites, cells, dims
        self._compiled: dict[str, Residuals] = {}
        members: dict[TieKey, list[str]] = {}
        for name, own in cells.items():
            members.setdefault(own.key, []).append(name)
        self._members = {
            key: names
            for key, names in members.items()
            if all(has_residuals(sites[name]) for name in names)
        }

    def needed(self, tied: Mapping[TieKey, TiedFactors], values: Values) -> frozenset[TieKey]:
        """Tied factors whose log densities are small differences of large terms.

        Args:
            tied: The tied factors.
            values: The values of their parameters in each cell.
        """
        lost = (k for k in self._members if bool(density_lost(tied[k], values[k]).any()))
        return frozenset(lost)

    def lost(self, statistics: Mapping[TieKey, tuple[TiedFactors, Tensor]]) -> frozenset[TieKey]:
        """Tied factors whose scatter is a small difference of large sums about the reference."""
        return frozenset(k for k in self._members if bool(scatter_lost(*statistics[k]).any()))

    def unsure(
        self,
        tied: Mapping[TieKey, TiedFactors],
        params: Params,
        sums: Mapping[TieKey, Tensor],
        count: int,
    ) -> Tensor:
        """Which of several starts are among either, ``(R,)``; all is of all of them.

        Args:
            tied: The tied factors of a plan batched for all starts.
            params: Stacked parameters.
            sums: Statistics ``(R, C, P)`` of each tied.
            count: The number ``R`` of starts.
        """
        found = torch.zeros(count, dtype=torch.bool)
        for key in self._members:
            lost = density_lost(tied[key], tied[key].parameter_values(params))
            lost = lost | scatter_lost(tied[key], sums[key].flatten(0, 1))
            found |= lost.reshape(count, -1).any(1)
        return found

    def log_probs(
        self, keys: Iterable[TieKey], tied: Mapping[TieKey, TiedFactors], params: Params
    ) -> dict[str, Tensor]:
        """The log probability of every site of some tied, in the dims of its factor."""
        return {
            name: self._residuals(name, tied[key]).log_prob(at)
            for key in keys
            for at in [Cells.of(tied[key], params)]
            for name in self._members[key]
        }

    def sums(
        self, tied: TiedFactors, params: Params, posteriors: Mapping[str, Tensor]
    ) -> tuple[TiedFactors, Tensor]:
        """Expected statistics about the mean of each cell, which is its reference."""
        pieces = [(self._residuals(n, tied), posteriors[n]) for n in self._members[tied.key]]
        at = Cells.of(tied, params)
        if isinstance(tied.family, Regression):
            lines = [(r, p) for r, p in pieces if isinstance(r, LineResiduals)]
            return line_sums(tied, at, lines)
        centre = at.locations
        if not isinstance(tied.family, NORMAL):
            return tied, _summed(pieces, at, centre, squares=False)[0]
        if tied.reference is not None:
            count, total = _summed(pieces, at, centre, squares=False)
            share = count.reshape(-1, *(1,) * (total.dim() - 1))
            centre = centre + torch.where(share > 0.0, total / share, 0.0)
        if isinstance(tied.family, Location):
            count, total = _summed(pieces, at, centre, squares=False)
            statistics = torch.stack([total, count], -1)
        elif isinstance(tied.family, Normal):
            statistics = torch.stack(_summed(pieces, at, centre, squares=True), -1)
        else:
            count, total, squares = _summed(pieces, at, centre, squares=True)
            rows, columns = torch.triu_indices(*squares.shape[-2:], device=squares.device)
            statistics = torch.cat([count[:, None], total, squares[:, rows, columns]], -1)
        if tied.reference is None:
            return tied, statistics
        reach = tied.reach
        if reach is not None and not isinstance(tied.family, Location):
            reach = reach + (centre - tied.reference).abs()
        return dataclasses.replace(tied, reference=centre, reach=reach), statistics

    def _residuals(self, name: str, tied: TiedFactors) -> Residuals:
        if name not in self._compiled:
            site, cells = self._sites[name], self._cells[name].index
            self._compiled[name] = compile_residuals(site, cells, self._dims[name], tied)
        return self._compiled[name]


def _summed(
    pieces: Sequence[tuple[Residuals, Tensor]], at: Cells, centre: Tensor, squares: bool
) -> list[Tensor]:
    """The moments of several sites together, cell by cell."""
    each = [found.moments(at, posterior, centre, squares) for found, posterior in pieces]
    return [torch.stack(same).sum(0) for same in zip(*each, strict=True)]
