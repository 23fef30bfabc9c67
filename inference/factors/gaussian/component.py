r"""Connected Gaussian latents with all sites that read them, as one factor.

Given natural parameters, the log density of every pooled event is quadratic in the latents. All of
them together are

.. math:: c + h^\top z - \tfrac12 z^\top P z,

whose integral is the factor; its gradient by natural parameters are the expected statistics.
Discrete latents may choose among natural parameters as long as each has one value for each row of
plates that the component keeps outside: then there is such a form for every value and row
(Lauritzen 1992, *Propagation of probabilities, means and variances in mixed graphical association
models*, JASA 87, 1098-1108: continuous variables are integrated before discrete ones).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.factor import Factor, Scale
from ember.inference.factors.gaussian.linked import LinkedFactor
from ember.inference.factors.gaussian.quadratic import monomials
from ember.inference.factors.tied import TieKey
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.systems import GaussianSystem, gaussian_system

__all__ = ["GaussianComponent", "Potentials", "assembled"]


Natural = Mapping[TieKey, Tensor]


@dataclass(frozen=True)
class Potentials:
    """``c + h'z - z'Pz / 2``: constants ``(..., S, R)``, ``h (..., S, n)``, ``P (..., S, nnz)``.

    ``S`` runs over joint values of the discrete latents that the component reads.
    """

    constant: Tensor
    linear: Tensor
    precision: Tensor


@dataclass(frozen=True, eq=False)
class GaussianComponent:
    """Gaussian latents that meet in sites, and those sites.

    Attributes:
        factor: Its dims: discrete latents that it reads, and the plates that it keeps outside.
        latents: The latents with the number of entries of each.
        members: The sites.
        states: The dims of discrete latents, with their sizes.
        rows: The sizes of the plates kept outside.
        pattern: Which entries meet.
        system: How they are integrated out.
        row_of_part: The row of plates of every connected part of the system.
        entry_sets: For each member where its pools' monomials go in ``P``, and with which factor.
    """

    factor: Factor
    latents: Mapping[str, int]
    members: tuple[LinkedFactor, ...]
    states: tuple[tuple[str, int], ...]
    rows: tuple[tuple[str, int], ...]
    pattern: Pattern
    system: GaussianSystem
    row_of_part: Tensor
    entry_sets: tuple[tuple[Tensor, Tensor], ...]

    @property
    def count(self) -> int:
        """The number of entries of all latents."""
        return sum(self.latents.values())

    @property
    def row_of_entry(self) -> Tensor:
        """The row of the plates kept outside in which each entry lies, ``(n,)``."""
        return self.row_of_part[self.system.components]

    @property
    def description(self) -> str:
        """How the latents are integrated, in words."""
        return self.system.description

    def first(self, latent: str) -> int:
        """The number of the first entry of a latent."""
        names = list(self.latents)
        return sum(self.latents[name] for name in names[: names.index(latent)])

    def log_prob(self, natural: Natural) -> Tensor:
        """The log evidence of the component's sites, in the dims of its factor."""
        potentials = self.potentials(natural)
        parts = self.system.log_integral(potentials.linear, potentials.precision)
        total = potentials.constant.index_add(-1, self.row_of_part.to(parts.device), parts)
        lead = total.shape[:-2]
        sizes = [size for _, size in (*self.states, *self.rows) if size > 1]
        return total.reshape([*lead, *sizes])

    def potentials(self, natural: Natural) -> Potentials:
        """The quadratic form of the latents at every value of the discrete ones."""
        lead = next(iter(natural.values())).shape[:-2]
        like = next(iter(natural.values()))
        shape = [size for _, size in self.states]
        rows = torch.Size([size for _, size in self.rows]).numel()
        sizes = (rows, self.count, len(self.pattern.rows))
        total = [like.new_zeros(*lead, *(1 for _ in shape), size) for size in sizes]
        for member, (places, factors) in zip(self.members, self.entry_sets, strict=True):
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


def assembled(
    name: str,
    latents: Mapping[str, int],
    members: Sequence[LinkedFactor],
    states: Sequence[tuple[str, int]],
    rows: Sequence[tuple[str, int]],
    row_of_entry: Tensor,
    scale: Scale | None,
) -> GaussianComponent:
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
    system = gaussian_system(pattern)
    sets = []
    for one, other in pairs:
        # A monomial z_j z_k stands for both triangles; a square for one entry of -P / 2.
        factors = torch.where(one == other, -2.0, -1.0).to(torch.float64)
        sets.append((pattern.place(one, other), factors))
    parts = int(system.components.max()) + 1
    row_of_part = torch.zeros(parts, dtype=torch.long)
    row_of_part[system.components] = row_of_entry
    kept = [(symbol, size) for symbol, size in (*states, *rows) if size > 1]
    factor = Factor(
        name,
        tuple(symbol for symbol, _ in kept),
        frozenset(symbol for symbol, _ in rows),
        scale,
    )
    return GaussianComponent(
        factor, dict(latents), tuple(members), tuple(states), tuple(rows), pattern, system,
        row_of_part, tuple(sets),
    )  # fmt: skip
