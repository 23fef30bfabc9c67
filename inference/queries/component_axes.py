"""Which axes of which parameters the states of a latent site index.

The plan's maps say so: an axis is one if its coordinate is the state itself, wherever a site's
arguments follow the states.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ember.inference.families.sticks import StickMap
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.parameters.affine_map import AffineMap, ParameterEntries
from ember.inference.parameters.argument_map import ArgumentMap, ParameterRows
from ember.inference.parameters.vector_map import VectorMap
from ember.inference.plan.plan import Plan
from ember.inference.reading.sequences import base_name, members
from ember.inference.reading.site import Site

__all__ = ["component_axes", "members_of", "numberings"]


Axes = dict[str, set[int]]
IndexedMap = (
    ArgumentMap | AffineMap | StickMap | VectorMap
)  # of a table of rows, which an index picks from


def numberings(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The latent sites by the numbering that they share: ``state`` for ``state_0, state_1, ...``.

    A site that belongs to no sequence has a numbering of its own.
    """
    return plan.once(_numberings)


def _numberings(plan: Plan) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for name in plan.discrete_latents:  # nodes have an order of their own
        base = base_name(name)
        steps = members(base, plan.structure.latent) if base else []
        sizes = {plan.sizes.get(plan.latent_symbols[step], 1) for step in steps}
        shared = base if base and len(steps) > 1 and len(sizes) == 1 else name
        groups.setdefault(shared, []).append(name)
    return {shared: tuple(names) for shared, names in groups.items()}


def component_axes(plan: Plan, latent: str) -> dict[str, tuple[int, ...]]:
    """The axes of each parameter that are indexed by the states of a latent site.

    Args:
        plan: The plan of the model.
        latent: A latent site, or the common name of its steps.

    Returns:
        Parameter name to axes; parameters without such an axis are left out.

    Raises:
        ValueError: If no latent site has this name.

    Example:
        >>> import torch
        >>> from ember.inference import EM
        >>> import pyro, pyro.distributions as dist
        >>> def coins(heads):
        ...     weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        ...     with pyro.plate("coins", 2):
        ...         p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     with pyro.plate("rows", len(heads)):
        ...         coin = pyro.sample("coin", dist.Categorical(weights))
        ...         pyro.sample("heads", dist.Binomial(10, p[coin]), obs=heads)
        >>> fit = EM(coins, seed=0).fit(torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0]))
        >>> component_axes(fit.plan, "coin")
        {'weights': (0,), 'p': (0,)}
    """
    return plan.once(_component_axes, members_of(plan, latent))


def _component_axes(plan: Plan, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {name: p.shape for name, p in plan.structure.parameters.items()}
    axes: Axes = {}
    starts = {c.initial for c in plan.structure.chains if c.latent in names}
    before = {plan.chains[n].previous for n in names if n in plan.chains}
    for name, site in plan.sites.items():
        if name in names or name in starts:
            _state_axes(axes, site, shapes)
        for symbol in ({plan.latent_symbols[n] for n in names} | before) & set(site.layout.outer):
            _indexed_axes(axes, site, site.layout.outer.index(symbol), shapes)
    while _through_priors(axes, plan, shapes):
        pass
    return {name: tuple(sorted(axes[name])) for name in shapes if axes.get(name)}


def members_of(plan: Plan, latent: str) -> tuple[str, ...]:
    """All latent sites that share a numbering with ``latent``."""
    for shared, names in numberings(plan).items():
        steps = (step for name in names for step in plan.structure.own_names(name))
        if latent == shared or latent in names or latent in steps:
            return names
    raise ValueError(
        f"'{latent}' is not a latent site of the model; its latent sites are "
        f"{list(numberings(plan))}."
    )


def _state_axes(axes: Axes, site: Site, shapes: Mapping[str, torch.Size]) -> None:
    """The last axis of a latent's own probabilities runs over its states."""
    for argument in _maps(site):
        if argument.table is None or argument.table.event_dim != 1:
            continue
        if argument.domain != "simplex":
            continue
        if isinstance(argument, AffineMap):
            rows = argument.index.movedim(-1, 0).reshape(argument.index.shape[-1], -1)
            for source, positions, lead in _positions(argument.table, rows, shapes):
                axes.setdefault(source, set()).update(_following(positions, lead))
            continue
        for source in argument.sources:
            axes.setdefault(source, set()).add(len(shapes[source]) - 1)


def _indexed_axes(axes: Axes, site: Site, dim: int, shapes: Mapping[str, torch.Size]) -> bool:
    """Adds the axes along which a site's arguments follow its batch dim ``dim``; True if any."""
    rank = len(site.layout.outer) + site.layout.inner
    grown = False
    for argument in _maps(site):
        if argument.table is None:
            continue
        index = prepend_dims(argument.index, rank + getattr(argument, "event_dim", 0))
        if index.size(dim) == 1:
            continue
        rows = index.movedim(dim, 0).reshape(index.size(dim), -1)
        for source, positions, lead in _positions(argument.table, rows, shapes):
            for axis in _following(positions, lead) - axes.get(source, set()):
                axes.setdefault(source, set()).add(axis)
                grown = True
    return grown


def _positions(
    table: ParameterRows | ParameterEntries, rows: Tensor, shapes: Mapping[str, torch.Size]
) -> Iterator[tuple[str, Tensor, torch.Size]]:
    """Where in each source the rows of a table lie: flat positions in its leading dims, or below 0.

    A table of coefficients (of a regression) names single entries, any other table whole events.
    """
    of_entries = isinstance(table, ParameterEntries)
    if isinstance(table, ParameterEntries):
        rows = torch.tensor(table.entries)[rows].flatten(1)
    start = 0
    for source in table.sources:
        shape = shapes[source]
        lead = shape if of_entries else shape[: len(shape) - table.event_dim]
        inside = (rows >= start) & (rows < start + lead.numel())
        yield source, torch.where(inside, rows - start, -1), lead
        start += lead.numel()


def _following(positions: Tensor, lead: torch.Size) -> set[int]:
    """The axes whose coordinate is the state itself, for every state, wherever a source is used."""
    used = positions >= 0
    if not lead or not bool(used.any(1).all()):
        return set()
    state = torch.arange(len(positions)).unsqueeze(1)
    coordinates = torch.unravel_index(positions.clamp_min(0), lead)
    return {i for i, at in enumerate(coordinates) if bool(((at == state) | ~used).all())}


def _through_priors(axes: Axes, plan: Plan, shapes: Mapping[str, torch.Size]) -> bool:
    """Carries component axes on to parameters that appear only in another one's prior."""
    grown = False
    for name, prior in plan.priors.items():
        batch = len(prior.site.layout.outer) + prior.site.layout.inner
        for axis in sorted(axes.get(name, set())):
            if axis < batch:
                grown = _indexed_axes(axes, prior.site, axis, shapes) or grown
    return grown


def _maps(site: Site) -> list[IndexedMap]:
    maps = [] if site.density is None else [found for _, found in site.density.maps.values()]
    return [
        each for each in maps if isinstance(each, (ArgumentMap, AffineMap, StickMap, VectorMap))
    ]
