"""The records of a loop: the sites that become one, and the families of sites that make a chain."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.reading.sequences import base_name

__all__ = ["Family", "Loop"]


@dataclass(frozen=True)
class Family:
    """Sites of one loop that become one.

    Attributes:
        name: What the stacked site is called.
        members: The site of each step; None where the loop has none.
        latent: Whether it is latent.
        varies: Arguments of the distribution that differ between the steps; None if not known.
    """

    name: str
    members: tuple[str | None, ...]
    latent: bool
    varies: frozenset[str] | None = None

    @property
    def present(self) -> list[int]:
        """The steps that have a member."""
        return [step for step, member in enumerate(self.members) if member is not None]

    @property
    def names(self) -> tuple[str, ...]:
        """The sites by the names that the model gives them."""
        return tuple(member for member in self.members if member is not None)

    @property
    def symbol(self) -> str:
        """The dim of a latent's values."""
        return f"{self.name}, each step"

    def apart(self, value: Tensor, dim: int) -> dict[str, Tensor]:
        """A tensor with a dim of steps under the family's name, or that of each member."""
        present = value.index_select(dim, torch.tensor(self.present))
        if len(self.names) > 1 and self.name == base_name(self.names[0]):
            return {self.name: present}
        return dict(zip(self.names, present.unbind(dim), strict=True))


@dataclass(frozen=True)
class Loop:
    """A loop over the steps of one chain.

    Attributes:
        chain: The family of the chain's states.
        others: Families of latents and data of a step.
        outside: Symbols of latents outside the loop that its sites depend on.
    """

    chain: Family
    others: tuple[Family, ...]
    outside: tuple[str, ...] = ()

    @property
    def latent(self) -> str:
        """The chain's stacked site."""
        return self.chain.name

    @property
    def steps(self) -> int:
        """The number of time steps."""
        return len(self.chain.members)

    @property
    def time(self) -> str:
        """The name of the plate of time steps."""
        return f"steps of {self.chain.name}"

    @property
    def symbol(self) -> str:
        """The dim of a step's state."""
        return self.chain.symbol

    @property
    def at_once(self) -> bool:
        """The first state emits."""
        return True

    @property
    def initial(self) -> str:
        """The factor of the first state."""
        return f"{self.latent}[0]"

    @property
    def previous(self) -> str:
        """The dim of the state one step before."""
        return f"{self.latent}, one step before"

    @property
    def families(self) -> tuple[Family, ...]:
        return (self.chain, *self.others)

    @property
    def latent_dims(self) -> tuple[str, ...]:
        """The dims of latents in a stacked tensor, from the left."""
        inner = (family.symbol for family in self.others if family.latent)
        return (self.chain.symbol, self.previous, *inner, *self.outside)
