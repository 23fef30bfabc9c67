"""The numbering of latent states: which parameter entries it touches, and how to renumber them.

The states of a latent site are exchangeable names: renumbering them, in all parameters at once,
changes no density. Two fits can therefore agree and still look different. The plan's maps say
which axes of which parameters a state indexes, so fits are put in one order for any model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.expectation.posterior import marginals
from ember.inference.factors.factor import align as spread
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.supports import all_within, is_real
from ember.inference.plan.plan import Near, Plan
from ember.inference.reading.matching.arguments import probe_values
from ember.inference.reading.sequences import base_name, members
from ember.inference.reading.site import Site

__all__ = [
    "Params",
    "canonical_order",
    "component_axes",
    "exchangeable",
    "in_canonical_order",
    "is_same_density",
    "numberings",
    "permute",
    "renumbered",
]


Params = Mapping[str, Tensor]
Axes = dict[str, set[int]]
MOST_NUMBERS = 20_000_000  # in the factors of a model that is asked at random parameters


def numberings(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The latent sites by the numbering that they share: ``state`` for ``state_0, state_1, ...``.

    A site that belongs to no sequence has a numbering of its own.
    """
    return plan.once(_numberings)


def _numberings(plan: Plan) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name in plan.structure.latent:
        base = base_name(name)
        steps = members(base, plan.structure.latent) if base else []
        sizes = {plan.sizes.get(plan.latent_symbols[step], 1) for step in steps}
        shared = base if base and len(steps) > 1 and len(sizes) == 1 else name
        found.setdefault(shared, []).append(name)
    return {shared: tuple(names) for shared, names in found.items()}


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
    return plan.once(_component_axes, _members(plan, latent))


def _component_axes(plan: Plan, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {name: p.shape for name, p in plan.structure.parameters.items()}
    axes: Axes = {}
    starts = {c.initial for c in plan.structure.chains if c.latent in names}
    before = {plan.chains[n].previous for n in names if n in plan.chains}
    for name, site in plan.sites.items():
        if name in names or name in starts:
            _own_axes(axes, site, shapes)
        for symbol in ({plan.latent_symbols[n] for n in names} | before) & set(site.layout.outer):
            _indexed_axes(axes, site, site.layout.outer.index(symbol), shapes)
    while _through_priors(axes, plan, shapes):
        pass
    return {name: tuple(sorted(axes[name])) for name in shapes if axes.get(name)}


def permute(plan: Plan, params: Params, latent: str, order: Sequence[int] | Tensor) -> Any:
    """Parameters with the states of a latent site renumbered: new state ``i`` is ``order[i]``.

    Args:
        plan: The plan of the model.
        params: Constrained parameters.
        latent: A latent site, or the common name of its steps.
        order: A permutation of the states.

    Returns:
        A new dict of parameters, with the same densities as long as priors treat states alike.

    Raises:
        ValueError: If ``order`` is no permutation of the states, or no latent has this name.
    """
    states = plan.sizes.get(plan.latent_symbols[_members(plan, latent)[0]], 1)
    index = torch.as_tensor(order, dtype=torch.long)
    if sorted(index.tolist()) != list(range(states)):
        raise ValueError(
            f"order={index.tolist()} is no permutation of the {states} states of '{latent}'."
        )
    axes = component_axes(plan, latent)
    moved = dict(params)
    for name, own in axes.items():
        for axis in own:
            moved[name] = moved[name].index_select(axis, index)
    return moved


def canonical_order(plan: Plan, params: Params, latent: str) -> list[int]:
    """States by decreasing share of the data that they explain."""
    names = list(_members(plan, latent))
    found, weight = marginals(plan, params, names), torch.zeros(())
    for name in names:
        own, scale = found[name].nan_to_num(), plan.scales[name]
        if scale is not None:  # a row that counts three times explains three rows
            own = own * spread(scale.tensor, scale.dims, plan.places(name)).unsqueeze(-1)
        weight = weight + own.reshape(-1, own.shape[-1]).sum(0)
    return [int(i) for i in torch.argsort(weight, descending=True, stable=True)]


def in_canonical_order(plan: Plan, params: Params) -> dict[str, Tensor]:
    """Parameters with the states of every latent in canonical order, where they are exchangeable.

    States are exchangeable if renumbering them leaves the density as it is at random parameters,
    and every parameter inside its support. States that differ by an accident of the estimates
    only, or whose parameters are ordered, keep their numbers. So do those whose renumbering shows
    at the estimates: far from the data, what tells states apart drowns in a density of -1e30.
    """
    found = dict(params)
    probe = _probe(plan)
    with torch.no_grad():
        for latent in numberings(plan):
            order = canonical_order(plan, found, latent)
            if order == list(range(len(order))):
                continue
            moved = permute(plan, found, latent, order)
            elsewhere = permute(plan, probe, latent, order)
            if is_same_density(plan, found, moved) and is_same_density(plan, probe, elsewhere):
                found = moved
    return found


def exchangeable(plan: Plan, latent: str, start: Params) -> bool:
    """Whether the states of a latent are mere names, by the densities at random parameters.

    And at a start: far from the data, what tells states apart drowns in a density of -1e30.
    Data too large to be asked twice are not asked: then the states count as mere names.
    """
    return plan.once(_exchangeable, _members(plan, latent)[0], Near(start))


def _exchangeable(plan: Plan, label: str, near: Near) -> bool:
    states = plan.sizes.get(plan.latent_symbols[label], 1)
    numbers = sum(math.prod(plan.sizes[d] for d in f.dims) for f in plan.factors)
    points, every = (_probe(plan), near.params), list(range(states))
    with torch.no_grad():
        return states < 2 or numbers > MOST_NUMBERS or all(
            is_same_density(plan, point, permute(plan, point, label, order))
            for order in ([1, 0, *every[2:]], [*every[1:], 0])
            for point in points
        )  # fmt: skip


def _probe(plan: Plan) -> Params:
    """Random parameters, the real ones so near zero that the data have a finite density there.

    The exponential of a line over years is infinite for any other slope.
    """
    probe = probe_values(plan.structure, 0)
    for _ in range(6):
        with torch.no_grad(), contextlib.suppress(RuntimeError, ArithmeticError):
            value = float(LogEvidence.of(plan)(probe))
            if math.isfinite(value) and value > 0.1 * IMPOSSIBLE:
                break
        reals = {n for n, p in plan.structure.parameters.items() if is_real(p.support)}
        probe = {n: 2.0**-10 * v if n in reals else v for n, v in probe.items()}
    return probe


def renumbered(
    plan: Plan, params: Params, order: Sequence[int] | str | None, latent: str | None
) -> dict[str, Tensor]:
    """Parameters with the states of a latent in a canonical or a given order; see ``Fit.relabel``.

    Raises:
        ValueError: If the model has no (or several) latents to renumber, the order names no
            site indexed by the states, or the priors tell the states apart.
    """
    known = numberings(plan)
    if latent is None and len(known) != 1:
        raise ValueError(
            f"the model has the latent sites {sorted(known)}; name the one to renumber, latent=..."
            if known
            else "the model has no latent site whose states could be renumbered."
        )
    latent = next(iter(known)) if latent is None else latent
    if latent not in known:
        raise ValueError(f"'{latent}' is not a latent site; the model has {sorted(known)}.")
    if order is None:
        order = canonical_order(plan, params, latent)
    elif isinstance(order, str):
        axes = component_axes(plan, latent).get(order, ())
        if not axes:
            raise ValueError(f"site '{order}' is not indexed by the states of '{latent}'.")
        rows = params[order].movedim(axes[0], 0)
        order = torch.argsort(rows.reshape(len(rows), -1)[:, 0], stable=True).tolist()
    moved: dict[str, Tensor] = permute(plan, params, latent, order)
    if not is_same_density(plan, params, moved):
        raise ValueError(
            f"the states of '{latent}' cannot be renumbered: the model's priors or data tell them "
            "apart."
        )
    return moved


def _members(plan: Plan, latent: str) -> tuple[str, ...]:
    """All latent sites that share a numbering with ``latent``."""
    for shared, names in numberings(plan).items():
        own = (step for name in names for step in plan.structure.own_names(name))
        if latent == shared or latent in names or latent in own:
            return names
    raise ValueError(
        f"'{latent}' is not a latent site of the model; its latent sites are "
        f"{list(numberings(plan))}."
    )


def _own_axes(axes: Axes, site: Site, shapes: Mapping[str, torch.Size]) -> None:
    """The last axis of a latent's own probabilities runs over its states."""
    for argument in _maps(site):
        if argument.table is None or argument.table.event_dim != 1:
            continue
        if argument.domain != "simplex":
            continue
        if isinstance(argument, AffineMap):
            rows = argument.index.movedim(-1, 0).reshape(argument.index.shape[-1], -1)
            for source, places, lead in _places(argument.table, rows, shapes):
                axes.setdefault(source, set()).update(_following(places, lead))
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
        for source, places, lead in _places(argument.table, rows, shapes):
            for axis in _following(places, lead) - axes.get(source, set()):
                axes.setdefault(source, set()).add(axis)
                grown = True
    return grown


def _places(
    table: Any, rows: Tensor, shapes: Mapping[str, torch.Size]
) -> Iterator[tuple[str, Tensor, torch.Size]]:
    """Where in each source the rows of a table lie: flat places in its leading dims, or below 0.

    A table of coefficients (of a regression) names single entries, any other table whole events.
    """
    entries = getattr(table, "entries", None)
    if entries is not None:
        rows = torch.tensor(entries)[rows].flatten(1)
    start = 0
    for source in table.sources:
        shape = shapes[source]
        lead = shape if entries is not None else shape[: len(shape) - table.event_dim]
        inside = (rows >= start) & (rows < start + lead.numel())
        yield source, torch.where(inside, rows - start, -1), lead
        start += lead.numel()


def _following(places: Tensor, lead: torch.Size) -> set[int]:
    """The axes whose coordinate is the state itself, for every state, wherever a source is used."""
    used = places >= 0
    if not lead or not bool(used.any(1).all()):
        return set()
    state = torch.arange(len(places)).unsqueeze(1)
    coordinates = torch.unravel_index(places.clamp_min(0), lead)
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


def _maps(site: Site) -> list[Any]:
    return [] if site.density is None else [found for _, found in site.density.maps.values()]


def is_same_density(plan: Plan, before: Params, after: Params) -> bool:
    """Whether renumbering left the log joint as it was, as it must for exchangeable states.

    A density may go on outside the support (that of ordered locations does), where no fit may end.
    Where the model cannot be evaluated, nothing is known, and the numbers stay.
    """
    if not all_within(plan.structure.parameters, after):
        return False
    with torch.no_grad():
        try:
            old, new = (
                float(LogEvidence.of(plan)(p) + plan.prior.log_prob(p)) for p in (before, after)
            )
        except (RuntimeError, ArithmeticError):
            return False
    return abs(new - old) <= 1e-9 * (1.0 + abs(old)) or (old == new)
