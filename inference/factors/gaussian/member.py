"""What a Gaussian component needs to know of each of its sites."""

from typing import NamedTuple, Protocol

from torch import Tensor

from ember.inference.factors.tied import TieKey

__all__ = ["Member", "Pieces"]


class Pieces(NamedTuple):
    """A site's share of a quadratic form; all of them are affine in natural parameters.

    Attributes:
        constant: Of each of the site's pools of events, ``(..., D, U)``.
        linear: What adds to the linear term of an entry, ``(..., D, L)``.
        precision: What adds to the precision of a pair, ``(..., D, K)``.
    """

    constant: Tensor
    linear: Tensor
    precision: Tensor


class Member(Protocol):
    """Sites of a component, compiled.

    ``D`` runs over the joint values of the discrete latents that they read.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The sites."""
        ...

    @property
    def key(self) -> TieKey:
        """What they are tied to."""
        ...

    @property
    def symbols(self) -> tuple[tuple[str, int], ...]:
        """The dims of discrete latents on which they depend, with their sizes."""
        ...

    @property
    def rows(self) -> Tensor:
        """The row of the component's plates in which each pool lies, ``(U,)``."""
        ...

    @property
    def linear_entries(self) -> Tensor:
        """The entries to which the linear pieces belong, ``(L,)``."""
        ...

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """The pairs of entries to which the pieces of the precision belong, ``(K,)`` each."""
        ...

    def pieces(self, eta: Tensor, stretched: Tensor | None = None) -> Pieces:
        """The pieces at natural parameters ``(..., C, P)`` of the cells.

        Args:
            eta: The natural parameters.
            stretched: The same once more for each piece of an expansion, ``(E, C, P)``.
        """
        ...
