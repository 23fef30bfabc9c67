"""One site of a component: natural parameters to potentials of the continuous latents it reads."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.factor import Scale
from ember.inference.factors.tied import SiteCells, TieKey
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.reading.gaussian.slots import NotIntegrable
from ember.inference.reading.site import Site

__all__ = ["LinkedFactor", "compile_linked", "weight_over_batch"]


@dataclass(frozen=True, eq=False)
class LinkedFactor:
    """The events of a site pooled: those of one cell that read the same entries add up.

    Attributes:
        name: The site.
        key: What it is tied to.
        symbols: The dims of discrete latents on which its cells depend, with their sizes.
        cells: The cell of every pool at each value of those latents, ``(D, U)``.
        coefficients: Statistics as quadratic functions of the entries, ``(D or 1, U, P + 1, M)``.
        entries: The entries that each pool reads, ``(U, J)``, counted over the component.
        rows: The row of the component's plates in which each pool lies, ``(U,)``.
    """

    name: str
    key: TieKey
    symbols: tuple[tuple[str, int], ...]
    cells: Tensor
    coefficients: Tensor
    entries: Tensor
    rows: Tensor

    def potentials(self, eta: Tensor) -> Tensor:
        """The log density of every pool as coefficients of monomials, ``(..., D, U, M)``.

        Args:
            eta: Natural parameters of the cells, ``(..., C, P)``.
        """
        gathered = eta.index_select(-2, self.cells.reshape(-1))
        gathered = gathered.reshape(*eta.shape[:-2], *self.cells.shape, 1, eta.shape[-1])
        linear = gathered @ self.coefficients[..., :-1, :]
        return linear.squeeze(-2) + self.coefficients[..., -1, :]


def compile_linked(
    site: Site,
    cells: SiteCells,
    coefficients: Tensor,
    scale: Scale | None,
    discrete: Mapping[str, int],
    first: Mapping[str, int],
    row_numbers: Tensor,
) -> LinkedFactor:
    """Pools the events of a site.

    Args:
        site: The site.
        cells: Its cells.
        coefficients: Its statistics as functions of the entries, ``(*batch, P + 1, M)``.
        scale: The weight of each event relative to its row's.
        discrete: The sizes of the dims of discrete latents.
        first: For each latent of the component the number of its first entry.
        row_numbers: The component's row of every event, at full rank.
    """
    rank, outer = len(site.layout.outer) + site.layout.inner, site.layout.outer
    ahead = sorted((i for i, s in enumerate(outer) if s in discrete), key=lambda i: outer[i])
    rest = [i for i in range(rank) if i not in ahead]
    if scale is not None:
        weight = weight_over_batch(scale, outer, rank)
        coefficients = coefficients * weight.unsqueeze(-1).unsqueeze(-1)
    index = prepend_dims(cells.index, rank)
    entries = [first[slot.latent] + prepend_dims(slot.entries, rank) for slot in site.reads]
    full = torch.broadcast_shapes(
        coefficients.shape[:rank], index.shape, row_numbers.shape, *(e.shape for e in entries)
    )
    sizes = [full[i] for i in rest]
    states = [full[i] for i in ahead]

    def arranged(tensor: Tensor, tail: int) -> Tensor:
        """Values of discrete latents first, then all events in one dim."""
        shape = [tensor.size(i) for i in ahead]
        varies = torch.Size(shape).numel() > 1
        at_full = range(rank) if varies else rest
        wide = tensor.expand(
            [*(full[i] if i in at_full else 1 for i in range(rank)), *tensor.shape[rank:]]
        )
        moved = wide.permute([*ahead, *rest, *range(rank, rank + tail)])
        count = torch.Size(states).numel() if varies else 1
        return moved.reshape(count, torch.Size(sizes).numel(), *tensor.shape[rank:])

    all_entries = torch.stack(torch.broadcast_tensors(*entries), -1)
    if any(all_entries.size(i) > 1 for i in ahead):
        raise NotIntegrable(
            f"which entry of the latent '{site.reads[-1].latent}' site '{site.name}' reads depends "
            "on a discrete latent; estimate the continuous one as a parameter with "
            f"integrate={{'{site.reads[-1].latent}': None}}."
        )
    reads = arranged(all_entries, 1)[0]
    rows = arranged(row_numbers.expand([1 if i in ahead else -1 for i in range(rank)]), 0)[0]
    of_state = index.expand([full[i] if i in ahead else index.size(i) for i in range(rank)])
    by_state = arranged(of_state, 0)
    pooled = arranged(coefficients, 2)
    place, members = _pools(torch.cat([rows.unsqueeze(0), reads.T, by_state]))
    if len(members) < len(place):
        total = pooled.new_zeros(len(pooled), len(members), *pooled.shape[2:])
        pooled = total.index_add_(1, place, pooled)
    else:
        pooled = pooled[:, members]
    symbols = tuple((outer[i], size) for i, size in zip(ahead, states, strict=True))
    return LinkedFactor(
        site.name, cells.key, symbols, by_state[:, members], pooled.contiguous(),
        reads[members], rows[members],
    )  # fmt: skip


def weight_over_batch(scale: Scale, outer: tuple[str, ...], rank: int) -> Tensor:
    """A weight over the batch of a site, at full rank."""
    shape = [
        scale.tensor.size(scale.dims.index(symbol)) if symbol in scale.dims else 1
        for symbol in outer
    ]
    order = sorted(range(len(scale.dims)), key=lambda i: outer.index(scale.dims[i]))
    tensor = scale.tensor.permute(order).reshape(shape)
    return tensor.reshape(*shape, *(1,) * (rank - len(outer)))


def _pools(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The pool of every event, and one event of each, for keys ``(columns, events)``."""
    place = torch.zeros_like(keys[0])
    for column in keys:
        joint = place * (int(column.max()) + 1) + column
        place = torch.unique(joint, return_inverse=True)[1]
    count = int(place.max()) + 1
    members = torch.zeros(count, dtype=torch.long, device=place.device)
    members[place] = torch.arange(len(place), device=place.device)
    return place, members
