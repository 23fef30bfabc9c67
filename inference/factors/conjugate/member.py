"""One site of a factor that integrates a latent, where no natural parameters describe the site."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.factor import Scale
from ember.inference.factors.gaussian.arranging import over_batch
from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims
from ember.inference.reading.gaussian.reads import NotIntegrable
from ember.inference.reading.site import Site

__all__ = ["AskedMember", "compile_asked"]


@dataclass(frozen=True, eq=False)
class AskedMember:
    """A site whose potentials are computed from parameters at each evaluation.

    Attributes:
        names: The site.
        symbols: The dims of discrete latents that it may depend on, with their sizes.
        sizes: The size of every dim of its batch.
        ahead: The dims of discrete latents.
        weight: Of each event, at full rank; None if all count once.
        entries: The entry that each event reads, ``(U, 1)``.
        rows: The row of the component's plates in which each event lies, ``(U,)``.
    """

    names: tuple[str]
    symbols: tuple[tuple[str, int], ...]
    sizes: tuple[int, ...]
    ahead: tuple[int, ...]
    weight: Tensor | None
    entries: Tensor
    rows: Tensor

    def arranged(self, potentials: Tensor) -> Tensor:
        """Potentials ``(..., *batch, M)``, dims of size 1 for all alike, as ``(..., D, U, M)``."""
        if self.weight is not None:
            potentials = potentials * self.weight.unsqueeze(-1)
        rank = len(self.sizes)
        lead = potentials.dim() - rank - 1
        wide = potentials.expand(*potentials.shape[:lead], *self.sizes, -1)
        rest = [i for i in range(rank) if i not in self.ahead]
        order = [*range(lead), *(lead + i for i in (*self.ahead, *rest)), lead + rank]
        states = torch.Size([self.sizes[i] for i in self.ahead]).numel()
        moved = wide.permute(order)
        return moved.reshape(*potentials.shape[:lead], states, len(self.rows), moved.shape[-1])


def compile_asked(
    site: Site,
    potentials: Tensor,
    scale: Scale | None,
    discrete: Mapping[str, int],
    row_numbers: Tensor,
) -> AskedMember:
    """Lays out a site.

    Args:
        site: The site.
        potentials: Its potentials at some parameters, for the shape.
        scale: The weight of each event relative to its row's.
        discrete: The sizes of the dims of discrete latents.
        row_numbers: The component's row of every event, at full rank.
    """
    slot = site.conjugate
    assert slot is not None
    outer = site.layout.outer
    rank = len(outer) + site.layout.inner
    ahead = sorted((i for i, s in enumerate(outer) if s in discrete), key=lambda i: outer[i])
    entries = prepend_dims(slot.entries, rank)
    if any(entries.size(i) > 1 for i in ahead):
        raise NotIntegrable(
            f"which entry of the latent '{slot.latent}' site '{site.name}' reads depends on a "
            "discrete latent; estimate the continuous one as a parameter with "
            f"integrate={{'{slot.latent}': None}}."
        )
    weight = None if scale is None else over_batch(scale, outer, rank)
    shapes = [potentials.shape[:-1], entries.shape, row_numbers.shape]
    full = broadcast_shapes(*shapes, (1,) if weight is None else weight.shape)

    def flat(tensor: Tensor) -> Tensor:
        return tensor.expand([1 if i in ahead else full[i] for i in range(rank)]).reshape(-1)

    return AskedMember(
        (site.name,), tuple((outer[i], full[i]) for i in ahead), tuple(full), tuple(ahead), weight,
        flat(entries).unsqueeze(-1), flat(prepend_dims(row_numbers, rank)),
    )  # fmt: skip
