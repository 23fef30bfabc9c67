"""One site of the model as reading leaves it: its value, its dims by name, its distribution."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.families.conjugate_latents import ConjugateFamily
from ember.inference.families.exponential_form import ExponentialForm
from ember.inference.families.known_densities import KnownDensity
from ember.inference.numerics.distribution import Distribution, remade_for_density
from ember.inference.numerics.gamma_ratios import exact_log_prob
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.numerics.observed_density import observed_log_prob
from ember.inference.numerics.shapes import append_dims, broadcast_shapes
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.batching import Shapes
from ember.inference.parameters.map import ParameterMap

__all__ = [
    "ConjugateSlot",
    "DistributionTemplate",
    "NamedDims",
    "Site",
    "Slot",
    "UnitSlot",
    "fill_masked",
    "finish",
]


@dataclass(frozen=True, eq=False)
class Slot:
    """One entry of a Gaussian latent that each event of a site reads, linearly.

    Either it moves the event: what the site's location is subtracted from is its value plus
    ``coefficient * z[entries]``, summed over slots; so a latent moves its own prior by one. Or it
    is a feature: ``coefficient * z[entries]`` is what one of the site's regression coefficients
    multiplies, in ``column``.

    Attributes:
        latent: The latent site.
        entries: Flat numbers of the entries of its value, over the site's batch, broadcast dims
            of size 1.
        coefficient: What an entry is multiplied by, over the batch and, where it moves a vector,
            over the event.
        column: The place among the features of a regression; None if it moves the event.
    """

    latent: str
    entries: Tensor
    coefficient: Tensor
    column: int | None = None


@dataclass(frozen=True, eq=False)
class ConjugateSlot:
    """The entry of a latent with a conjugate prior that each event of a site reads.

    Attributes:
        latent: The latent site.
        entries: Flat numbers of the entries of its value (of a vector the first), over the site's
            batch, broadcast dims of size 1.
        family: The family of its prior.
        argument: The argument that it enters; "" of the latent's own prior.
        exponent: The power of it that multiplies the argument; 0 if it is the probability.
        swapped: Where it is the probability of the other outcome.
    """

    latent: str
    entries: Tensor
    family: ConjugateFamily
    argument: str = ""
    exponent: float = 0.0
    swapped: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.bool))

    @property
    def is_own(self) -> bool:
        """Whether it is that of a latent in its own prior."""
        return not self.argument


@dataclass(frozen=True, eq=False)
class UnitSlot:
    """The unit whose latents each event of a site reads.

    Attributes:
        latents: The latents of units that it reads; of a latent itself, the others of its prior.
        units: Flat numbers of the units, over the site's batch at full rank.
        is_own: Whether the site is such a latent.
    """

    latents: tuple[str, ...]
    units: Tensor
    is_own: bool = False


@dataclass(frozen=True)
class NamedDims:
    """Names of a site's batch dims: one symbol for each dim, '' where the size is 1."""

    outer: tuple[str, ...]
    inner: int

    def pack(self, tensor: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Drops the dims of size 1 and names the others."""
        lead = len(self.outer) - tensor.dim()
        kept = [i for i, size in enumerate(tensor.shape) if size > 1]
        shape = [tensor.size(i) for i in kept]
        return tensor.reshape(shape), tuple(self.outer[i + lead] for i in kept)


@dataclass(frozen=True)
class DistributionTemplate:
    """A distribution rebuilt from its argument maps, wrappers included."""

    base: Distribution
    maps: Mapping[str, tuple[str, ParameterMap]]
    inner_shape: tuple[int, ...]
    mask: Tensor | None
    masked_log_prob: float

    @functools.cached_property
    def is_constant(self) -> bool:
        """Whether no parameter feeds it."""
        return all(argument.is_constant for _, argument in self.maps.values())

    @property
    def sources(self) -> frozenset[str]:
        """The parameters that feed some argument."""
        return frozenset(name for _, argument in self.maps.values() for name in argument.sources)

    @property
    def is_plain(self) -> bool:
        """Whether every argument is a constant or gathered from parameters."""
        return all(isinstance(argument, ArgumentMap) for _, argument in self.maps.values())

    @functools.cached_property
    def _known(self) -> KnownDensity | None:
        """The density with all done that does not depend on the value, where nothing varies."""
        return KnownDensity.of(self.base) if self.is_constant else None

    def batched(self, shapes: Shapes, rank: int, count: int) -> "DistributionTemplate":
        """That of several values of every parameter, if it is plain."""
        maps: dict[str, tuple[str, ParameterMap]] = {}
        for name, (argument, found) in self.maps.items():
            assert isinstance(found, ArgumentMap)
            maps[name] = (argument, found.batched(shapes, rank, count))
        return dataclasses.replace(self, maps=maps)

    def distribution(self, params: Mapping[str, Tensor]) -> Distribution:
        """The base distribution at ``params``, broadcast dims of size 1."""
        if self.is_constant:
            return self.base
        arguments = {name: argument.evaluate(params) for name, argument in self.maps.values()}
        return remade_for_density(self.base, arguments)

    def log_prob(
        self, params: Mapping[str, Tensor], value: Tensor, has_gaps: bool = True
    ) -> Tensor:
        """Log probability over the outer batch dims.

        Args:
            params: The parameters.
            value: The value.
            has_gaps: Whether entries may be NaN because they are missing.
        """
        value = fill_masked(value, self.mask, len(self.base.event_shape))
        if self._known is not None:
            log_prob = self._known.log_prob(value)
        else:
            density = observed_log_prob if has_gaps else exact_log_prob
            log_prob = density(self.distribution(params), value)
        return finish(log_prob, self.mask, self.inner_shape, self.masked_log_prob)


def finish(
    log_prob: Tensor, mask: Tensor | None, inner: tuple[int, ...], masked_log_prob: float
) -> Tensor:
    """Applies a mask, sums over event dims made of batch dims, and keeps the result finite."""
    if mask is not None:
        log_prob = torch.where(
            mask, log_prob, torch.full((), masked_log_prob, dtype=log_prob.dtype)
        )
    if inner:
        shape = broadcast_shapes(log_prob.shape, inner)
        log_prob = log_prob.expand(shape).sum(tuple(range(-len(inner), 0)))
    return log_prob.clamp_min(IMPOSSIBLE)


def fill_masked(value: Tensor, mask: Tensor | None, event_dims: int) -> Tensor:
    """Puts a harmless number where entries are masked, which may be NaN: one that is not."""
    if mask is None or not value.is_floating_point():
        return value
    value, inside = torch.broadcast_tensors(value, append_dims(mask, event_dims))
    shown = value[inside]
    return torch.where(inside, value, shown[0] if len(shown) else torch.ones(()))


@dataclass(frozen=True)
class Site:
    """What a factor needs to know of its site, read off the trace once.

    ``missing`` marks the entries of an observed value that are to be integrated out, shaped like
    the value; single entries and whole rows among them are masked as well. ``slots`` are the
    Gaussian latents that it reads: its value, form and density are those at zero of them all;
    ``conjugate`` is the slot of a latent with a conjugate prior, ``unit`` that of latents of units.
    ``log_weights`` are those of the nodes of a latent on nodes, ``(Q,)``.
    """

    name: str
    value: Tensor
    layout: NamedDims
    plates: frozenset[str]
    inner_shape: tuple[int, ...]
    mask: Tensor | None
    masked_log_prob: float
    event_dim: int
    form: ExponentialForm | None
    density: DistributionTemplate | None
    reason: str
    missing: Tensor | None = None
    slots: tuple[Slot, ...] = ()
    conjugate: ConjugateSlot | None = None
    log_weights: Tensor | None = None
    unit: UnitSlot | None = None

    @property
    def draw_shape(self) -> torch.Size:
        """The shape of one draw of the distribution itself, whose entries depend on each other."""
        return self.value.shape[self.value.dim() - self.event_dim + self.layout.inner :]

    @property
    def reads(self) -> tuple["Slot | ConjugateSlot", ...]:
        """The entries of continuous latents that each event reads, of either kind."""
        return self.slots if self.conjugate is None else (self.conjugate,)

    @property
    def is_plain(self) -> bool:
        """Whether it is a factor by itself: it has no part in an integral in closed form."""
        return not self.reads and self.unit is None

    def weigh(self, log_prob: Tensor) -> Tensor:
        """A log density over the outer batch dims, times what the nodes of the latent weigh."""
        if self.log_weights is None:
            return log_prob
        batch = self.value.shape[: self.value.dim() - self.event_dim]
        return log_prob + self.log_weights.reshape(batch)
