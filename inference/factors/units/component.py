r"""Latents of units and all sites that read them, as one factor.

Its log probability is the log evidence of each unit, a sum over nodes,

.. math:: \log \sum_q \omega_q \, p(u_q) \prod_{n \text{ in the unit}} p(y_n \mid u_q).

With nodes where they are, its gradient by natural parameters of the latents' prior are their
expected statistics, and by the log densities of the sites the posterior weights of the nodes. So
the M-step sees a complete model, in which each unit counts with its weight at each node.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Size, Tensor

from ember.inference.factors.exponential import at_cells, statistics_of
from ember.inference.factors.factor import Factor, align
from ember.inference.factors.tied import SiteCells, TieKey
from ember.inference.factors.units.modes import modes
from ember.inference.factors.units.playback import Playback
from ember.inference.numerics.adaptive import Adaptive
from ember.inference.numerics.monte_carlo import MonteCarlo
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.reading.site import NamedDims, Site
from ember.inference.reading.units.latents import UnitLatent

__all__ = ["UnitComponent", "UnitNodes", "UnitPrior"]


Natural = Mapping[TieKey, Tensor]
Params = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class UnitNodes:
    """Where the nodes of all units stand.

    Attributes:
        modes: The mode of each unit on the whole line, ``(G, D)``.
        roots: Of the inverse curvature there, ``(G, D, D)``.
        values: The nodes of each latent, ``(Q, *plates, *event)``.
        log_weights: Of each node of each unit, ``(Q, G)``.
    """

    modes: Tensor
    roots: Tensor
    values: Mapping[str, Tensor]
    log_weights: Tensor


@dataclass(frozen=True, eq=False)
class UnitPrior:
    """A latent's own prior in exponential-family form.

    Attributes:
        site: The latent, with a dim of nodes before all others.
        cells: What it is tied to, and the cell of every entry.
    """

    site: Site
    cells: SiteCells

    @staticmethod
    def of(site: Site, cells: SiteCells) -> "UnitPrior":
        """That of a latent, as it is read."""
        layout = NamedDims(("", *site.layout.outer), site.layout.inner)
        return UnitPrior(dataclasses.replace(site, layout=layout), cells)

    def log_prob(self, eta: Tensor, values: Tensor) -> Tensor:
        """The log density of each unit's value, ``(Q, G)``."""
        site, own = self.site, values.to(torch.float64)
        statistics, base = statistics_of(site, own, self.cells.reference)
        gathered = at_cells(eta, prepend_dims(self.cells.index, statistics.dim() - 1))
        inner = len(site.inner_shape)
        total = (gathered * statistics).flatten(-1 - inner).sum(-1) + base
        shape = total.shape[:1] + own.shape[1 : own.dim() - site.event_dim]
        lead = total.dim() - len(shape)
        total = total.reshape(len(total), *total.shape[1 + lead :])
        return total.expand(shape).reshape(len(own), -1)


@dataclass(frozen=True, eq=False)
class UnitComponent:
    """Latents of the same units that share sites, and those sites.

    Attributes:
        factor: Its dims: those of the units where all sites stand in their plates, else none.
        latents: The latents.
        priors: Those of them in exponential-family form.
        playback: The sites that the model is asked for.
        rule: How the latents are integrated.
        sizes: The sizes of the factor's dims.
        at: The nodes; None before they are placed.
        monte_carlo: How their parameters are found from draws, if they are.
        memory: Where the modes were last: where the next search begins.
    """

    factor: Factor
    latents: Mapping[str, UnitLatent]
    priors: Mapping[str, UnitPrior]
    playback: Playback
    rule: Adaptive
    sizes: tuple[int, ...]
    at: UnitNodes | None = None
    monte_carlo: MonteCarlo | None = None
    memory: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def dims(self) -> int:
        """How many numbers a unit has."""
        return sum(latent.dims for latent in self.latents.values())

    @property
    def batch(self) -> Size:
        """The sizes of the plates of the units."""
        return next(iter(self.latents.values())).batch

    @property
    def sites(self) -> tuple[str, ...]:
        """The latents and the sites that read them."""
        return tuple(dict.fromkeys([*self.latents, *self.playback.sites]))

    # -- the factor -----------------------------------------------------------------------------

    def log_prob(self, natural: Natural, other: Mapping[str, Tensor]) -> Tensor:
        """The log evidence of the units, in the dims of the factor.

        Args:
            natural: Natural parameters of tied factors.
            other: Log densities at the nodes of the sites that the model is asked for, ``(Q, G)``.
        """
        each = self.joint(natural, other).logsumexp(0)
        return each.reshape(self.sizes) if self.factor.dims else each.sum()

    def joint(self, natural: Natural, other: Mapping[str, Tensor]) -> Tensor:
        """The log density of each unit at each node, times what that weighs, ``(Q, G)``."""
        assert self.at is not None
        return self._densities(natural, other, self.at.values) + self.at.log_weights

    def _densities(
        self, natural: Natural, other: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> Tensor:
        parts = [other[name] for name in self.playback.sites]
        parts += [p.log_prob(natural[p.cells.key], values[n]) for n, p in self.priors.items()]
        return torch.stack(parts).sum(0)

    def misplayed(self, params: Params) -> list[str]:
        """Sites of which the model, asked once more, says something else than its record does."""
        line = self._start()[None]
        with torch.no_grad():
            values, _ = self.values_of(line)
            return self.playback.misplayed(params, {n: value[0] for n, value in values.items()})

    # -- nodes ----------------------------------------------------------------------------------

    def placed(
        self, natural: Natural, params: Params, rule: Adaptive | None = None
    ) -> "UnitComponent":
        """The same with nodes at modes and curvatures for some parameters."""
        rule = rule or self.rule
        found, roots = modes(lambda v: self.on_line(natural, params, v[None])[0], self._start())
        self.memory["modes"] = found
        points, log_weights = (each.to(found) for each in rule.points(self.dims))
        line = found + (points[:, None, None, :] * roots).sum(-1)
        values, slopes = self.values_of(line)
        volume = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        weights = log_weights[:, None] + volume + slopes
        return dataclasses.replace(self, at=UnitNodes(found, roots, values, weights), rule=rule)

    def on_line(
        self, natural: Natural, params: Params, line: Tensor, temper: float = 1.0
    ) -> Tensor:
        """The log density of units at points ``(Q, G, D)`` of the whole line, ``(Q, G)``.

        With ``temper`` below 1 that of the sites that the model is asked for counts by so much.
        """
        values, slopes = self.values_of(line)
        played = self.playback.at(params, values)
        if temper != 1.0:
            played = {name: temper * each for name, each in played.items()}
        return self._densities(natural, played, values) + slopes

    def weight_of_units(self) -> Tensor:
        """How often each unit counts, ``(G,)``, or one number."""
        scale = self.factor.scale
        if scale is None:
            return torch.ones((), dtype=torch.float64)
        return align(scale.tensor, scale.dims, self.factor.dims).expand(self.sizes).reshape(-1)

    def values_of(self, line: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The values of latents at points of the whole line, and the logarithm of the slope."""
        pieces = line.split([latent.dims for latent in self.latents.values()], -1)
        values, slopes = {}, line.new_zeros(line.shape[:2])
        for (name, latent), piece in zip(self.latents.items(), pieces, strict=True):
            free = piece.reshape(len(line), *latent.batch, *latent.event)
            values[name] = latent.transform(free)
            if latent.support is not latent.transform.domain:
                slope = latent.transform.log_abs_det_jacobian(free, values[name])
                slopes = slopes + slope.reshape(*line.shape[:2], -1).sum(-1)
        return values, slopes

    def _start(self) -> Tensor:
        if "modes" in self.memory:
            return self.memory["modes"]
        return self.line_of({n: latent.origin for n, latent in self.latents.items()})

    def line_of(self, values: Mapping[str, Tensor]) -> Tensor:
        """Where values of the latents lie on the whole line, ``(G, D)``."""
        units = self.batch.numel()
        parts = [
            latent.transform.inv(values[name].double()).reshape(units, -1)
            for name, latent in self.latents.items()
        ]
        return torch.cat(parts, 1)


def names_of(components: Sequence[UnitComponent]) -> list[str]:
    """The latents of some components."""
    return [name for component in components for name in component.latents]
