"""What a site reads of a Gaussian latent, and the refusal where that cannot be integrated."""

from dataclasses import dataclass

from torch import Tensor

from ember.inference.parameters.argument_map import ArgumentMap

__all__ = ["NotIntegrable", "Reads"]


class NotIntegrable(ValueError):
    """A Gaussian latent cannot be integrated exactly; the message says why, and the remedy."""


@dataclass(frozen=True)
class Reads:
    """One entry of a latent that every event of a site reads in its location.

    Attributes:
        latent: The latent.
        entries: Flat numbers of the entries, over the site's batch; those of a chain's first states
            run on into the later ones.
        coefficient: What multiplies them, over the batch and, of vectors, the event: known, or
            gathered from parameters.
    """

    latent: str
    entries: Tensor
    coefficient: ArgumentMap
