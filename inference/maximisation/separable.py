"""Blocks of coordinates that an expected log joint does not mix: Newton's method takes them apart.

An item of a questionnaire has a slope and an intercept, and no cell of the expected statistics
depends on those of two items. So the Hessian is made of small blocks: the connected components of
the coordinates, two being connected where some cell, or some prior, depends on both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import scipy.sparse
import torch
from torch import Tensor

from ember.inference.factors.tied import TiedFactors
from ember.inference.maximisation.parameter_plan import ParameterPlan
from ember.inference.parameters.computed_rows import ComputedRows
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.supports import base_support
from ember.inference.plan.plan import Near
from ember.inference.plan.statistics import Statistics

__all__ = ["blocks_of"]


WIDEST = 12  # coordinates in a block: the Hessian takes as many products
MOST_NUMBERS = 50_000_000  # in the table of who depends on whom


def blocks_of(plan: ParameterPlan, names: Sequence[str], statistics: Statistics) -> Tensor | None:
    """The blocks ``(B, W)`` of the named parameters' coordinates; -1 where a block has fewer.

    None where there is nothing to be taken apart, or it is not known. Who depends on whom is found
    once for a plan, from the first statistics at hand.
    """
    tied = tuple(tied for tied, _ in statistics.sums.values())
    if not any(map(_is_computed, tied)) or statistics.prior.opaque is not None:
        return None
    if statistics.opaque or statistics.second_order is not None:
        return None
    return plan.once(_blocks, tuple(names), Near(statistics.params), _Cells(tied))


@dataclass(frozen=True)
class _Cells:
    """The cells of all tied factors, of which those of any statistics will do."""

    tied: tuple[TiedFactors, ...] = field(compare=False)


def _is_computed(tied: TiedFactors) -> bool:
    return any(isinstance(parameter.table, ComputedRows) for parameter in tied.parameters)


def _blocks(
    plan: ParameterPlan, names: tuple[str, ...], near: Near, cells: _Cells
) -> Tensor | None:
    places = Coordinates({name: plan.parameters[name] for name in names}).slices()
    size = sum(len(own) for own in places.values())
    number = sum(len(tied.cells) for tied in cells.tied)
    if size < 2 or number * size > MOST_NUMBERS:
        return None
    one = torch.eye(size, device="cpu", dtype=torch.float32)
    links = [one, *_of_priors(plan, places, size)]
    with torch.no_grad():
        for name, own in places.items():
            shape = plan.parameters[name].shape
            if base_support(plan.parameters[name].support).event_dim or shape.numel() != len(own):
                links.append(_joined([own], size))  # its entries and coordinates are not the same
        links.append(_of_cells(cells.tied, places, near.params, size))
    together = torch.cat([link.to("cpu") for link in links]).numpy()
    graph = scipy.sparse.csr_matrix(together.T @ together)
    count, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    members = [[int(i) for i in (labels == block).nonzero()[0]] for block in range(count)]
    widest = max(map(len, members))
    if count < 2 or widest > WIDEST:
        return None
    padded = [own + [-1] * (widest - len(own)) for own in members]
    return torch.tensor(padded, device=places[names[0]].device)


def _of_cells(
    tied: Sequence[TiedFactors],
    places: Mapping[str, Tensor],
    params: Mapping[str, Tensor],
    size: int,
) -> Tensor:
    """Which entries each cell depends on, ``(cells, P)``: it is NaN where one of them is."""
    number = sum(len(each.cells) for each in tied)
    link = torch.zeros((number, size), device="cpu", dtype=torch.float32)
    for name, own in places.items():
        for i, place in enumerate(own.tolist()):
            marked = params[name].detach().clone()
            if i >= marked.numel():
                break
            marked.view(-1)[i] = torch.nan
            moved = {**params, name: marked}
            gone = [_where_nan(each, moved) for each in tied]
            link[:, place] = torch.cat(gone).to(link)
    return link


def _where_nan(tied: TiedFactors, params: Mapping[str, Tensor]) -> Tensor:
    """Which cells, ``(C,)``, have a value that is NaN."""
    found = torch.zeros(len(tied.cells), dtype=torch.bool, device=tied.cells.device)
    for value in tied.parameter_values(params):
        found = found | value.isnan().reshape(len(value), -1).any(1)
    return found


def _of_priors(plan: ParameterPlan, places: Mapping[str, Tensor], size: int) -> list[Tensor]:
    """What the prior of each parameter connects: what it reads, and entries drawn as one."""
    links = []
    for name, prior in plan.priors.items():
        density = prior.site.density
        assert density is not None
        read = [places[source] for source in density.sources if source in places]
        own = [places[name]] if name in places else []
        if read or (own and density.base.event_shape):
            links.append(_joined(own + read, size))
    return links


def _joined(places: Sequence[Tensor], size: int) -> Tensor:
    link = torch.zeros((1, size), device="cpu", dtype=torch.float32)
    link[0, torch.cat(list(places)).to("cpu")] = 1.0
    return link
