r"""Rotations of hidden factors that change no density of the data: dimensions that do not count.

With :math:`z \sim N(0, s^2 I)` of ``q`` entries and free loadings :math:`W`, the data depend on
:math:`W W^\top` alone, which :math:`W R` has too, for any orthogonal :math:`R`. Of ``D q`` loadings
so many directions are idle as there are in the group of rotations, ``q (q - 1) / 2`` if ``D >= q``.

Reference: Lawley & Maxwell (1971), *Factor analysis as a statistical method*, Butterworths, ch. 2.
"""

import itertools

import numpy as np
import pyro.distributions as dist
import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ember.inference.factors.gaussian.component import GaussianComponent
from ember.inference.numerics.shapes import append_dims
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.vector_map import VectorMap
from ember.inference.plan.plan import Plan
from ember.inference.queries.gaussian.locations import by_state
from ember.inference.reading.composites import Composite
from ember.inference.reading.site import Site

__all__ = ["idle_rotations"]


def idle_rotations(plan: Plan) -> int:
    """How many directions in the space of parameters only rotate hidden factors."""
    hidden = {name for c in plan.structure.gaussian_chains for name in (c.initial, c.latent)}
    idle = sum(
        _idle(plan, component, name)
        for component in plan.components
        for name in component.latents
        if name not in hidden
    )
    return idle + sum(_idle_of_chain(plan, chain) for chain in plan.structure.gaussian_chains)


def _idle_of_chain(plan: Plan, chain: Composite) -> int:
    """The rotations of all states of a chain whose matrices are free, and its noise round."""
    size = plan.structure.gaussian[chain.latent][-1]
    initial, state, data = (plan.sites[n] for n in (chain.initial, chain.latent, chain.site))
    round_ = all(_has_round_prior(site) for site in (initial, state))
    free = _is_free(state, size) and _is_free(data, size)
    return _rotations(size) if round_ and free else 0


def _is_free(site: Site, states: int) -> bool:
    """Whether every number of an event multiplies each state by a parameter of its own."""
    columns = [slot.column for slot in site.slots if slot.column is not None]
    known = [slot for slot in site.slots if slot.column is None and slot.latent != site.name]
    location = site.density.maps["loc"][1] if site.density is not None else None
    numbers = site.value.shape[-1]
    if known or len(columns) != states:
        return False
    if isinstance(location, VectorMap):
        places = [j for j, f in enumerate(location.terms.columns) if f in columns]
    elif isinstance(location, AffineMap):
        places = columns
    else:
        return False
    rows = location.index.reshape(-1, *location.index.shape[-1:]).unique().tolist()
    entries = {location.table.entries[row][j] for row in rows for j in places}
    return len(entries) == numbers * states


def _idle(plan: Plan, component: GaussianComponent, name: str) -> int:
    latent = plan.sites[name]
    size = latent.value.shape[latent.value.dim() - latent.event_dim :].numel()
    readers = [
        site
        for other, site in plan.sites.items()
        if other != name and any(slot.latent == name for slot in site.slots)
    ]
    if size < 2 or not readers or not _is_round(latent):
        return 0
    states = torch.Size([count for _, count in component.states]).numel()
    edges, places = [], itertools.count()
    numbers: dict[tuple[int, ...], int] = {}
    for site in readers:
        found = _loadings(site, component, name, size)
        if found is None:
            return 0
        entries, rows, table = found
        number = torch.tensor([numbers.setdefault(row, next(places)) for row in table])
        edges.append(_edges(entries // size, number[rows], states))
    nodes, loadings = torch.cat(edges, -1)
    first = int(nodes.max()) + 1
    graph = scipy.sparse.coo_array(
        (np.ones(len(nodes)), (nodes.cpu().numpy(), (first + loadings).cpu().numpy())),
        shape=(first + int(loadings.max()) + 1,) * 2,
    )
    _, label = connected_components(graph, directed=False)
    groups = torch.from_numpy(label)[first + loadings.unique()].bincount()
    return sum(_rotations(size) - _rotations(size - count) for count in groups.tolist() if count)


def _rotations(size: int) -> int:
    """The dimension of the group of rotations."""
    return size * (size - 1) // 2 if size > 1 else 0


def _is_round(latent: Site) -> bool:
    """Whether a latent's prior is known, has no direction of its own and mean zero."""
    if any(slot.column is not None or slot.latent != latent.name for slot in latent.slots):
        return False
    return _has_round_prior(latent)


def _has_round_prior(latent: Site) -> bool:
    """The same, whatever other latents move it."""
    if latent.density is None or not all(
        found.is_constant for by, found in latent.density.maps.values() if by != "loc"
    ):
        return False
    fn = latent.density.base
    assert isinstance(fn, (dist.Normal, dist.MultivariateNormal))
    if bool((fn.loc != 0.0).any()):
        return False
    if isinstance(fn, dist.MultivariateNormal):
        square = fn.covariance_matrix
        unit = torch.eye(square.shape[-1], dtype=square.dtype)
        return bool(torch.allclose(square, square[..., :1, :1] * unit, rtol=1e-12, atol=0.0))
    inner = latent.layout.inner
    scale = fn.scale.reshape((*(1,) * (inner - fn.scale.dim()), *fn.scale.shape))
    first = scale
    for dim in range(scale.dim() - inner, scale.dim()):
        first = first.narrow(dim, 0, 1)
    return bool((scale == first).all())


def _loadings(
    site: Site, component: GaussianComponent, name: str, size: int
) -> tuple[Tensor, Tensor, list[tuple[int, ...]]] | None:
    """What a reader multiplies a latent by: the entries read, the row of a table, and the table.

    None unless each event reads one whole vector and all its coefficients are parameters.
    """
    slots = [slot for slot in site.slots if slot.latent == name]
    location = site.density.maps["loc"][1] if site.density is not None else None
    if len(slots) != size or not isinstance(location, AffineMap):
        return None
    if any(s.column is None or bool((s.coefficient != 1.0).any()) for s in slots):
        return None
    entries = torch.stack(torch.broadcast_tensors(*(slot.entries for slot in slots)), -1)
    every = torch.arange(size).expand(entries.shape)
    if not torch.equal((entries % size).sort(-1).values, every):
        return None
    if bool((entries // size != entries[..., :1] // size).any()):
        return None
    columns = [slot.column for slot in slots]
    order = (entries.reshape(-1, size)[0] % size).argsort().tolist()
    if not torch.equal(entries % size, (entries.reshape(-1, size)[0] % size).expand(entries.shape)):
        return None
    table = [tuple(row[columns[i] or 0] for i in order) for row in location.table.entries]
    read = by_state(entries[..., 0], site, component, 0)
    return read, by_state(location.index, site, component, 0), table


def _edges(vectors: Tensor, loadings: Tensor, states: int) -> Tensor:
    """Which vector, in which state, is multiplied by which loadings, ``(2, edges)``."""
    nodes = vectors * states + append_dims(torch.arange(states), vectors.dim() - 1)
    pairs = list(zip(nodes.shape, loadings.shape, strict=True))
    if states == 1 and all(min(pair) == 1 for pair in pairs):  # every vector meets all loadings
        ones = loadings.reshape(-1).unique()
        return torch.stack([nodes.reshape(-1)[:1].expand(len(ones)), ones])
    one, other = torch.broadcast_tensors(nodes, loadings)
    both: Tensor = torch.stack([one.reshape(-1), other.reshape(-1)]).unique(dim=-1)
    return both
