r"""A latent with a conjugate prior and all sites that read it, as one factor.

Its log probability is the log evidence of these sites,

.. math:: \sum_e \bigl( A_e + \log Z(\alpha_e + \lambda_e) - \log Z(\alpha_e) \bigr),

over the entries :math:`e` of the latent, with what all events that read an entry say of it added
up. The gradient by natural parameters and by potentials are the expected statistics. Discrete
latents may choose among them as long as each has one value for each row of plates that the factor
keeps outside: the continuous latent is integrated before they are summed out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.conjugate.member import AskedMember
from ember.inference.factors.factor import Factor
from ember.inference.factors.gaussian.linked import LinkedFactor
from ember.inference.factors.tied import TieKey
from ember.inference.families.conjugate_latents import ConjugateFamily
from ember.inference.numerics.shapes import broadcast_shapes

__all__ = ["ConjugateComponent", "Member"]


Natural = Mapping[TieKey, Tensor]
Member = LinkedFactor | AskedMember


@dataclass(frozen=True, eq=False)
class ConjugateComponent:
    """A latent and the sites that read it.

    Attributes:
        factor: Its dims: discrete latents that the sites read, and the plates kept outside.
        latent: The latent.
        family: Of its prior.
        count: The number of its entries: numbers, or vectors of probabilities.
        width: The numbers in an entry.
        prior: The latent by its own prior.
        children: The sites that read it.
        states: The dims of discrete latents, with their sizes.
        rows: The sizes of the plates kept outside.
        row_of_entry: The row of those plates in which each entry lies.
    """

    factor: Factor
    latent: str
    family: ConjugateFamily
    count: int
    width: int
    prior: Member
    children: tuple[Member, ...]
    states: tuple[tuple[str, int], ...]
    rows: tuple[tuple[str, int], ...]
    row_of_entry: Tensor

    @property
    def members(self) -> tuple[Member, ...]:
        """The latent and the sites that read it."""
        return (self.prior, *self.children)

    @property
    def sites(self) -> dict[str, tuple[str, ...]]:
        """The latent and the sites that read it, with the discrete latents' dims of each."""
        return {m.names[0]: tuple(symbol for symbol, _ in m.symbols) for m in self.members}

    def log_prob(self, natural: Natural, other: Mapping[str, Tensor]) -> Tensor:
        """The log evidence of the sites, in the dims of the factor.

        Args:
            natural: Natural parameters of tied factors.
            other: Potentials of the sites that no natural parameters describe.
        """
        prior, children = self.potentials(natural, other)
        return self._by_row(self.family.log_evidence(prior, children))

    def expected_log_prob(self, natural: Natural, other: Mapping[str, Tensor]) -> Tensor:
        """The log density of the sites, expected as if the latent had no data: where EM starts."""
        prior, children = self.potentials(natural, other)
        with torch.no_grad():
            of_children, of_prior = self.family.expected(self.family.hyperparameters(prior))
        each = children[..., 0] + (children[..., 1:] * of_children).sum(-1)
        return self._by_row(each + (prior * of_prior).sum(-1))

    def _by_row(self, each: Tensor) -> Tensor:
        """What is known of every entry, ``(..., S, n)``, in the dims of the factor."""
        rows = torch.Size([size for _, size in self.rows]).numel()
        if rows != self.count or rows == 1:
            total = each.new_zeros(*each.shape[:-1], rows)
            each = total.index_add(-1, self.row_of_entry.to(each.device), each)
        sizes = [size for _, size in (*self.states, *self.rows) if size > 1]
        return each.reshape([*each.shape[:-2], *sizes])

    def posterior(self, natural: Natural, other: Mapping[str, Tensor]) -> Tensor:
        """The hyperparameters of every entry at each value of discrete latents, ``(S, n, M)``."""
        prior, children = self.potentials(natural, other)
        return self.family.hyperparameters(prior) + children[..., 1:]

    def potentials(self, natural: Natural, other: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Those of the prior and of all children together, ``(..., S, n, P or 1 + M)``."""
        prior = self._gathered(self.prior, natural, other)
        children = sum((self._gathered(child, natural, other) for child in self.children[1:]),
                       self._gathered(self.children[0], natural, other))  # fmt: skip
        lead = broadcast_shapes(prior.shape[:-2], children.shape[:-2])
        starts = lead[: len(lead) - len(self.states)]
        states = torch.Size(lead[len(starts) :]).numel()
        first, second = (
            each.expand(*lead, *each.shape[-2:]).reshape(*starts, states, *each.shape[-2:])
            for each in (prior, children)
        )
        return first, second

    def _gathered(self, member: Member, natural: Natural, other: Mapping[str, Tensor]) -> Tensor:
        """What a site says of every entry, ``(..., *states, n, M)``; size 1 where all alike."""
        if isinstance(member, LinkedFactor):
            found = member.potentials(natural[member.key])
        else:
            found = member.arranged(other[member.names[0]])
        entries = torch.div(member.entries[:, 0], self.width, rounding_mode="floor")
        zero = found.new_zeros(*found.shape[:-2], self.count, found.shape[-1])
        added = zero.index_add(-2, entries.to(found.device), found)
        dims = dict(member.symbols)
        own = [dims.get(symbol, 1) for symbol, _ in self.states]
        return added.reshape(*found.shape[:-3], *own, self.count, found.shape[-1])
