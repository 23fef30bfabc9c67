r"""How the location of a site moves with the Gaussian latents that it reads.

At a joint value :math:`s` of the discrete latents, the location of event :math:`n` is

.. math:: \mu_{ns} + \sum_j c_{nsj}\, z_{e(n, j)}

with the coefficients and entries of its slots.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor

from ember.inference.factors.gaussian.component import GaussianComponent
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import append_dims, prepend_dims
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.vector_map import VectorMap
from ember.inference.plan.plan import Plan
from ember.inference.reading.site import Site, Slot

__all__ = ["Locations", "Normal", "by_state"]


Normal = dist.Normal | dist.MultivariateNormal


@dataclass(frozen=True)
class Locations:
    """A site's locations at given parameters, as functions of the latents of a component.

    Leading dims of size ``S``, or 1, run over joint values of the component's discrete latents;
    then come the dims of plates, those of events made of batch dims, and those of vectors.

    Attributes:
        component: The component.
        fn: The distribution where all latents are zero.
        event_dim: 1 for vectors, else 0.
        batch: The size of each dim but that of vectors.
        plates: How many of these are plates.
        base: Locations where all latents are zero, ``(S or 1, *batch, *event)``.
        coefficients: One for each slot, ``(S or 1, *batch or 1, *event or 1)``.
        entries: What each slot reads, numbers of the component's entries, ``(*batch or 1)``.
        rows: The row of the component's plates in which each event lies, ``(*batch or 1)``.
    """

    component: GaussianComponent
    fn: Normal
    event_dim: int
    batch: tuple[int, ...]
    plates: int
    base: Tensor
    coefficients: tuple[Tensor, ...]
    entries: tuple[Tensor, ...]
    rows: Tensor
    _site: Site

    @staticmethod
    def of(
        plan: Plan, params: Mapping[str, Tensor], component: GaussianComponent, name: str
    ) -> "Locations":
        """Those of an observed site with slots."""
        site = plan.sites[name]
        assert site.density is not None
        fn = _normal(site.density.distribution(params))
        event_dim = len(fn.event_shape)
        states = {symbol for symbol, _ in component.states}
        plates = [
            plan.sizes[symbol] if symbol in site.plates else 1
            for symbol in site.layout.outer
            if symbol not in states
        ]

        def arranged(tensor: Tensor, event: int) -> Tensor:
            return by_state(tensor, site, component, event)

        coefficients, entries = [], []
        for slot in site.slots:
            known = slot.column is None and slot.coefficient.dim()
            of_vectors = known or isinstance(site.density.maps["loc"][1], VectorMap)
            events = event_dim if of_vectors else 0
            coefficient = arranged(_coefficient(slot, site, params), events)
            coefficients.append(append_dims(coefficient, event_dim - events))
            number = component.first(slot.latent) + slot.entries
            entries.append(arranged(number, 0)[0])
        return Locations(
            component, fn, event_dim, (*plates, *site.inner_shape), len(plates),
            arranged(fn.loc, event_dim), tuple(coefficients), tuple(entries),
            component.row_of_entry[entries[0]], site,
        )  # fmt: skip

    @property
    def spare(self) -> int:
        """How many dims of size 1 lie left of those in which the data are given."""
        site = self._site
        given = site.value.dim() - site.event_dim + site.layout.inner
        spare = 0
        while spare < len(self.batch) - given and self.batch[spare] == 1:
            spare += 1
        return spare

    def at(self, latents: Tensor) -> Tensor:
        """Locations at ``E[z | s]`` or the like, ``(S, n)``: ``(S, *batch, *event)``."""
        total = self.base
        for coefficient, entries in zip(self.coefficients, self.entries, strict=True):
            total = total + coefficient * append_dims(latents[:, entries], self.event_dim)
        return total.expand(len(latents), *self.batch, *self.fn.event_shape)

    def of_states(self, tensor: Tensor, states: Tensor, event: int) -> Tensor:
        """What ``(S or 1, ...)`` is at the joint values ``(draws, R)`` drawn for each row.

        Returns:
            ``(draws, *batch, *event)``.
        """
        chosen = states[:, self.rows]
        chosen = prepend_dims(chosen.movedim(0, -1), len(self.batch) + 1).movedim(-1, 0)
        count = int(tensor.shape[0])
        full = tensor.expand(count, *self.batch, *tensor.shape[tensor.dim() - event :])
        if count == 1:
            return full.expand(len(states), *full.shape[1:])
        index = append_dims(chosen.expand(len(states), *self.batch), event)
        return full.gather(0, index.expand(-1, *full.shape[1:]))

    def drawn(self, states: Tensor, latents: Tensor) -> Tensor:
        """Locations for draws of joint values ``(draws, R)`` and of latents ``(draws, n)``."""
        total = self.of_states(self.base, states, self.event_dim)
        for coefficient, entries in zip(self.coefficients, self.entries, strict=True):
            own = self.of_states(coefficient, states, self.event_dim)
            total = total + own * append_dims(latents[:, entries], self.event_dim)
        return total

    def argument(self, argument: Tensor, event: int) -> Tensor:
        """An argument of the distribution as ``(S or 1, *batch or 1, *event)``."""
        return by_state(argument, self._site, self.component, event)


def _normal(fn: Distribution) -> Normal:
    """The distribution of any site that reads Gaussian latents."""
    assert isinstance(fn, (dist.Normal, dist.MultivariateNormal))
    return fn


def _coefficient(slot: Slot, site: Site, params: Mapping[str, Tensor]) -> Tensor:
    """What an entry is multiplied by in the location; of vectors a number for each entry."""
    if slot.column is None:
        return -slot.coefficient
    assert site.density is not None
    location = site.density.maps["loc"][1]
    if isinstance(location, VectorMap):
        return slot.coefficient.unsqueeze(-1) * location.matrix(params)[..., slot.column]
    assert isinstance(location, AffineMap)
    found: Tensor = location.table.rows(params)[location.index][..., slot.column]
    return slot.coefficient * found


def by_state(tensor: Tensor, site: Site, component: GaussianComponent, event: int) -> Tensor:
    """A tensor over a site's batch with its dims of discrete latents in front, as one dim."""
    outer = site.layout.outer
    tensor = prepend_dims(tensor, len(outer) + site.layout.inner + event)
    own = [outer.index(symbol) for symbol, _ in component.states if symbol in outer]
    rest = [i for i in range(tensor.dim()) if i not in own]
    moved = tensor.permute((*own, *rest))
    tail = moved.shape[len(own) :]
    if moved.shape[: len(own)].numel() == 1:
        return moved.reshape(1, *tail)
    lead = [tensor.size(outer.index(s)) if s in outer else 1 for s, _ in component.states]
    sizes = [size for _, size in component.states]
    return moved.reshape(*lead, *tail).expand(*sizes, *tail).reshape(-1, *tail)
