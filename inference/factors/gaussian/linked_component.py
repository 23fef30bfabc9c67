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
from ember.inference.factors.gaussian.linked import LinkedFactor
from ember.inference.factors.gaussian.quadratic import monomials
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.systems import GaussianSystem, gaussian_system

__all__ = ["LinkedComponent", "linked_component"]


@dataclass(frozen=True, eq=False)
class LinkedComponent(GaussianComponent):
    """A quadratic form with a sparse precision, put together from pools of events.

    Attributes:
        members: The sites, pooled.
        targets: For each member where its pools' monomials go in the precision, and with which
            factor.
    """

    members: tuple[LinkedFactor, ...]
    targets: tuple[tuple[Tensor, Tensor], ...]
    meeting: Pattern
    way: GaussianSystem
    row_numbers: Tensor

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

    def potentials(self, natural: Natural) -> Potentials:
        """The quadratic form of the latents at every value of the discrete ones."""
        lead = next(iter(natural.values())).shape[:-2]
        like = next(iter(natural.values()))
        shape = [size for _, size in self.states]
        rows = torch.Size([size for _, size in self.rows]).numel()
        sizes = (rows, self.count, len(self.pattern.rows))
        total = [like.new_zeros(*lead, *(1 for _ in shape), size) for size in sizes]
        for member, (places, factors) in zip(self.members, self.targets, strict=True):
            found = member.potentials(natural[member.key])
            slots = member.entries.shape[-1]
            constant, linear, quadratic = found.split([1, slots, found.shape[-1] - 1 - slots], -1)
            pieces = (
                (member.rows, constant.squeeze(-1)),
                (member.entries.reshape(-1), linear.flatten(-2)),
                (places.reshape(-1), (factors * quadratic).flatten(-2)),
            )
            dims = dict(member.symbols)
            own = [dims.get(symbol, 1) for symbol, _ in self.states]
            for i, (index, values) in enumerate(pieces):
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
    members: Sequence[LinkedFactor],
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
    count = sum(latents.values())
    pairs = [
        tuple(member.entries[:, index] for index in monomials(member.entries.shape[-1]))
        for member in members
    ]
    first = torch.cat([one.reshape(-1) for one, _ in pairs])
    second = torch.cat([other.reshape(-1) for _, other in pairs])
    pattern = Pattern.of(count, first, second)
    # A monomial z_j z_k stands for both triangles; a square for one entry of -P / 2.
    targets = tuple(
        (pattern.place(one, other), torch.where(one == other, -2.0, -1.0).to(torch.float64))
        for one, other in pairs
    )
    sites = {
        site: tuple(symbol for symbol, _ in member.symbols)
        for member in members
        for site in member.names
    }
    return LinkedComponent(
        factor_of(name, states, rows, scale), dict(latents), tuple(states), tuple(rows), sites,
        tuple(members), targets, pattern, gaussian_system(pattern), row_of_entry,
    )  # fmt: skip
