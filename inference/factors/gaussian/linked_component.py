"""A component of any shape: latents that meet as the indices of the sites say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.factor import Scale
from ember.inference.factors.gaussian.component import (
    GaussianComponent,
    Natural,
    Potentials,
    factor_of,
)
from ember.inference.factors.gaussian.expansion import Stretches
from ember.inference.factors.gaussian.member import Member
from ember.inference.factors.gaussian.stretching import stretches_of, uniform_parts
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.systems import GaussianSystem, gaussian_system

__all__ = ["LinkedComponent", "linked_component"]


@dataclass(frozen=True, eq=False)
class LinkedComponent(GaussianComponent):
    """A quadratic form with a sparse precision, put together from pools of events.

    Attributes:
        members: The sites, pooled.
        targets: For each member where its pairs stand in the pattern.
    """

    members: tuple[Member, ...]
    targets: tuple[Tensor, ...]
    meeting: Pattern
    way: GaussianSystem
    row_numbers: Tensor
    expansion: Stretches | None = None

    @property
    def stretches(self) -> Stretches | None:
        return self.expansion

    @property
    def pattern(self) -> Pattern:
        return self.meeting

    @property
    def system(self) -> GaussianSystem:
        return self.way

    @property
    def row_of_entry(self) -> Tensor:
        return self.row_numbers

    @property
    def description(self) -> str:
        return self.way.description

    def potentials(self, natural: Natural, pieces: Natural | None = None) -> Potentials:
        """The quadratic form of the latents at every value of the discrete ones."""
        lead = next(iter(natural.values())).shape[:-2]
        like = next(iter(natural.values()))
        shape = [size for _, size in self.states]
        rows = torch.Size([size for _, size in self.rows]).numel()
        sizes = (rows, self.count, len(self.pattern.rows))
        total = [like.new_zeros(*lead, *(1 for _ in shape), size) for size in sizes]
        for member, places in zip(self.members, self.targets, strict=True):
            stretched = None if pieces is None else pieces[member.key]
            found = member.pieces(natural[member.key], stretched)
            shares = zip((member.rows, member.linear_entries, places), found, strict=True)
            dims = dict(member.symbols)
            own = [dims.get(symbol, 1) for symbol, _ in self.states]
            for i, (index, values) in enumerate(shares):
                zero = values.new_zeros(*values.shape[:-1], sizes[i])
                added = zero.index_add(-1, index, values)
                total[i] = total[i] + added.reshape(*lead, *own, sizes[i])
        states = torch.Size(shape).numel()
        constant, linear, precision = (
            each.expand(*lead, *shape, each.shape[-1]).reshape(*lead, states, each.shape[-1])
            for each in total
        )
        return Potentials(constant, linear, precision)


def linked_component(
    name: str,
    latents: Mapping[str, int],
    members: Sequence[Member],
    states: Sequence[tuple[str, int]],
    rows: Sequence[tuple[str, int]],
    row_of_entry: Tensor,
    scale: Scale | None,
) -> LinkedComponent:
    """Lays out the quadratic form of a component once.

    Args:
        name: Of its factor.
        latents: Its latents with the number of entries of each.
        members: Its sites.
        states: The dims of the discrete latents that they read, with their sizes.
        rows: The plates that it keeps outside, with their sizes.
        row_of_entry: The row of those plates in which each entry lies.
        scale: The weight of the latents.
    """
    found = stretches_of(latents, members)
    if found is not None:
        members = [part for member in members for part in uniform_parts(member, *found)]
    count = sum(latents.values())
    first, second = (torch.cat(each) for each in zip(*(m.pairs for m in members), strict=True))
    pattern = Pattern.of(count, first, second)
    targets = tuple(pattern.place(*member.pairs) for member in members)
    sites = {
        site: tuple(symbol for symbol, _ in member.symbols)
        for member in members
        for site in member.names
    }
    return LinkedComponent(
        factor_of(name, states, rows, scale), dict(latents), tuple(states), tuple(rows), sites,
        tuple(members), targets, pattern, gaussian_system(pattern), row_of_entry,
        None if found is None else found[0],
    )  # fmt: skip
