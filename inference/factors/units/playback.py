"""The log densities of sites at many values of latents of units, played back from one record.

What the model computes is recorded once with parameters and latents as inputs (``numerics/tape``),
and played back for all nodes at once, by ``torch.func.vmap``. A model that cannot be recorded is
run once for each node instead.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.factors.factor import Scale, align
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.numerics.tape import Tape, record
from ember.inference.reading.opaque import model_log_prob
from ember.inference.reading.site import Site
from ember.inference.reading.structure import Structure

__all__ = ["Playback", "UnitRows", "unit_rows"]


Params = Mapping[str, Tensor]
SAME = 1e-7  # of a log density, relative and absolute
AT_ONCE = 4_000_000  # numbers of a site that are computed at once where no gradient is wanted


@dataclass(frozen=True, eq=False)
class UnitRows:
    """The events of one site: the unit of each, and how often it counts.

    Attributes:
        sizes: The sizes of the site's batch, at full rank.
        units: The unit of each event, flat; None where event ``i`` is that of unit ``i``.
        count: The number of units.
        weights: Of each event, flat; None if all count once.
    """

    sizes: tuple[int, ...]
    units: Tensor | None
    count: int
    weights: Tensor | None

    def by_unit(self, rows: Tensor) -> Tensor:
        """Log densities ``(Q, *batch)``, dims of size 1 for all alike, summed: ``(Q, G)``."""
        batch = rows.dim() - 1
        lead = (1,) * (len(self.sizes) - batch)
        rows = rows.reshape(rows.shape[0], *lead, *rows.shape[1:])
        flat = rows.expand(-1, *self.sizes).reshape(len(rows), -1)
        if self.weights is not None:
            flat = flat * self.weights
        total = self._summed(flat)
        if bool(total.isnan().any()):  # far out a density may be infinity over infinity
            total = self._summed(torch.where(flat.isnan(), IMPOSSIBLE, flat))
        return total

    def _summed(self, flat: Tensor) -> Tensor:
        if self.units is None:
            return flat
        return flat.new_zeros(len(flat), self.count).index_add(1, self.units, flat)


def unit_rows(site: Site, sizes: Mapping[str, int], count: int, scale: Scale | None) -> UnitRows:
    """The events of a site.

    Args:
        site: The site.
        sizes: The size of every dim.
        count: The number of units.
        scale: The weight of its events relative to their units'.
    """
    outer = site.layout.outer
    full = tuple(sizes[symbol] if symbol in site.plates else 1 for symbol in outer)
    assert site.unit is not None
    units = site.unit.units.expand(full).reshape(-1)
    in_order = torch.equal(units, torch.arange(count))
    weights = None
    if scale is not None:
        weights = align(scale.tensor, scale.dims, outer).expand(full).reshape(-1)
    return UnitRows(full, None if in_order else units, count, weights)


@dataclass(frozen=True, eq=False)
class Playback:
    """Sites that latents of units enter, as a function of parameters and of those.

    Attributes:
        structure: A way to run the model.
        sites: The sites.
        rows: Their events.
        latents: The latents that they read.
        tape: What the model computes; None if it has to be run.
    """

    structure: Structure
    sites: Mapping[str, Site]
    rows: Mapping[str, UnitRows]
    latents: tuple[str, ...]
    tape: Tape | None = None

    def recorded(self, probes: Sequence[Params]) -> "Playback":
        """The same with a tape, if the model can be recorded."""
        if not probes:
            return self
        units = self.structure.units
        moved = []
        for i, params in enumerate(probes):
            values = {}
            for name in self.latents:
                latent = units[name]
                free = latent.transform.inv(latent.origin.double())
                values[name] = latent.transform(free + 0.3 * (i + 1) * torch.linspace(
                    -1.0, 1.0, free.numel(), dtype=torch.float64).reshape(free.shape))  # fmt: skip
            moved.append({**params, **values})
        first, *others = moved
        return dataclasses.replace(self, tape=record(self._asked, first, others[-2:]))

    def _asked(self, inputs: Params) -> dict[str, Tensor]:
        trace = self.structure.trace(inputs)
        return {name: model_log_prob(site, trace) for name, site in self.sites.items()}

    def misplayed(self, params: Params, values: Params) -> list[str]:
        """Sites of which the model says something else than its record does.

        Args:
            params: The parameters.
            values: A value of each latent.
        """
        if self.tape is None:
            return []
        inputs = {**params, **values}
        try:
            asked, played = self._asked(inputs), self.tape(inputs)
        except (RuntimeError, ArithmeticError, ValueError):
            return []  # estimates on the edge of their supports: nothing to compare
        return [
            name
            for name, rows in asked.items()
            if not torch.allclose(rows, played[name], rtol=SAME, atol=SAME, equal_nan=True)
        ]

    def at(self, params: Params, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The log density of each site's events at some nodes, summed by unit, ``(Q, G)``.

        Args:
            params: The parameters.
            values: The nodes ``(Q, *plates, *event)`` of each latent.
        """
        rows = self._rows(params, [values[name] for name in self.latents])
        return {name: self.rows[name].by_unit(rows[name]) for name in self.sites}

    def _rows(self, params: Params, values: Sequence[Tensor]) -> dict[str, Tensor]:
        if self.tape is not None:
            # Where an operation fails, the model may know better.
            with contextlib.suppress(RuntimeError):
                return self._played(self.tape, params, values)
        runs = [
            self._asked({**params, **dict(zip(self.latents, each, strict=True))})
            for each in zip(*values, strict=True)
        ]
        return {name: torch.stack([run[name] for run in runs]) for name in self.sites}

    def _played(self, tape: Tape, params: Params, values: Sequence[Tensor]) -> dict[str, Tensor]:
        def play(*each: Tensor) -> tuple[Tensor, ...]:
            found = tape({**params, **dict(zip(self.latents, each, strict=True))})
            return tuple(found[name] for name in self.sites)

        if len(values[0]) == 1:
            alone = play(*(value[0] for value in values))
            return {n: found.unsqueeze(0) for n, found in zip(self.sites, alone, strict=True)}
        chunk = None if torch.is_grad_enabled() else self._chunk
        with _quiet():
            found = torch.func.vmap(play, chunk_size=chunk)(*values)
        return dict(zip(self.sites, found, strict=True))

    @functools.cached_property
    def _chunk(self) -> int:
        return max(1, AT_ONCE // max(self.size, 1))

    @functools.cached_property
    def size(self) -> int:
        """The number of events of the largest site."""
        return max(torch.Size(rows.sizes).numel() for rows in self.rows.values())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark, on standard error, that some operation is run node by node."""
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_warning_enabled(True)
