"""What a plan says about latent values and new draws, at given parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.expectation.posterior import marginals
from ember.inference.factors.gaussian.component import GaussianComponent
from ember.inference.numerics.shapes import append_dims, broadcast_shapes, prepend_dims
from ember.inference.numerics.whole_numbers import is_whole
from ember.inference.plan.plan import Plan
from ember.inference.plan.without_data import PlanWithoutData
from ember.inference.queries.conjugate.moments import EntryPosteriors
from ember.inference.queries.conjugate.posterior import conjugate_posterior
from ember.inference.queries.gaussian.draws import component_draws, state_draws
from ember.inference.queries.gaussian.moments import ComponentPosterior, entries_of
from ember.inference.queries.impossible import blank
from ember.inference.queries.on_nodes import NodePosterior, values_of_nodes
from ember.inference.queries.units import unit_draws, unit_posterior
from ember.inference.reading.sequences import base_name, members, stack
from ember.inference.reading.trace import TraceNode, plates_of

__all__ = ["latent_samples", "posterior", "predict", "sample"]


FEW = 4  # data sets that are drawn one by one
COPIES = 1_000  # of the data that are drawn side by side
SAME = 1e-9  # of log densities, relative and absolute


def posterior(plan: Plan, params: Mapping[str, Tensor], name: str) -> Tensor:
    """Posterior marginals of a latent site, ``(*plates, K)``; of all steps of a sequence.

    Raises:
        ValueError: If no latent site has this name.
    """
    latents = plan.structure.latent
    if name in latents:
        return marginals(plan, params, [name])[name]
    for whole in latents:
        steps_of_loop = plan.structure.own_names(whole)
        if name in steps_of_loop:
            return marginals(plan, params, [whole])[whole].select(-2, steps_of_loop.index(name))
    steps = members(name, latents)
    if not steps:
        raise ValueError(
            f"'{name}' is not a latent site of the model; its latent sites are {_shown(plan)}."
        )
    by_step = marginals(plan, params, steps)
    return torch.stack([by_step[step] for step in steps], -2)


def _shown(plan: Plan) -> list[str]:
    """The latent sites, those of a chain's steps by their common name."""
    structure = plan.structure
    names = [
        *structure.latent, *structure.shown_gaussian, *structure.conjugate, *structure.units
    ]  # fmt: skip
    return list(dict.fromkeys((n in structure.steps and base_name(n)) or n for n in names))


def predict(plan: Plan, params: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """The most probable joint value of all discrete latents, and the mean of each continuous one.

    NaN or -1 for impossible data.

    Raises:
        ValueError: If the model has no latent sites.
    """
    latents = list(plan.structure.latent)
    if not latents and not plan.components and not plan.conjugate and not plan.units:
        raise ValueError("the model has no latent sites to predict.")
    # Next to latents on nodes, which are integrated out, a discrete one has its own mode.
    best = marginals(plan, params, latents, maximum=not plan.on_nodes) if latents else {}
    values: dict[str, Tensor] = {}
    for latent in latents:
        marginal = best[latent]
        if latent in plan.on_nodes:
            values[latent] = NodePosterior(values_of_nodes(plan, params, latent), marginal).mean
        else:
            support = _support(plan, latent)
            gone = marginal.isnan().any(-1)
            values |= _values(plan, latent, support, marginal.argmax(-1), gone)
    leading = {name: value.dim() for name, value in values.items()}
    for component in plan.components:
        mean = ComponentPosterior.of(plan, params, component).mean
        values |= _of_component(plan, component, mean, leading)
    for name in plan.structure.conjugate:
        found = conjugate_posterior(plan, params, name)
        assert found is not None
        values |= _of_conjugate(plan, name, found.mean, (), leading)
    for name in plan.structure.units:
        posterior_of_units = unit_posterior(plan, params, name)
        assert posterior_of_units is not None
        values[name] = posterior_of_units.mean
        leading[name] = len(posterior_of_units.batch_shape)
    joined = stack(values, leading, plan.structure.steps)
    return next(iter(joined.values())) if len(joined) == 1 else joined


def latent_samples(plan: Plan, params: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Joint draws of all latents from their posterior, site name to ``(n, *shape)``.

    Those of a latent on nodes are nodes.

    Raises:
        ValueError: If the model has no latent sites.
    """
    if not (plan.structure.latent or plan.components or plan.conjugate or plan.units):
        raise ValueError("the model has no latent sites to draw.")
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        states = state_draws(plan, params, n)
        for latent in plan.structure.latent:
            _, state = states[plan.latent_symbols[latent]]
            on_nodes = latent in plan.on_nodes
            support = values_of_nodes(plan, params, latent) if on_nodes else _support(plan, latent)
            possible = torch.zeros((), dtype=torch.bool)
            values |= _values(plan, latent, support, state, possible)
        leading = {name: value.dim() for name, value in values.items()}
        drawn = component_draws(plan, params, states, n)
        for component in plan.components:
            entries = drawn[component.factor.name]
            values |= _of_component(plan, component, entries, leading)
        for integrated in plan.conjugate:
            entries = EntryPosteriors.of(plan, params, integrated).draw(states, n)
            values |= _of_conjugate(plan, integrated.latent, entries, (n,), leading)
        for name, drawn_units in unit_draws(plan, params, n).items():
            values[name] = drawn_units
            leading[name] = drawn_units.dim() - plan.sites[name].event_dim
    return stack(values, leading, plan.structure.steps)


def _values(
    plan: Plan, latent: str, support: Tensor, state: Tensor, gone: Tensor
) -> dict[str, Tensor]:
    """The values of a latent whose states have these numbers; by step if it is one of a loop."""
    chosen = support[state]
    value = blank(chosen, append_dims(gone, chosen.dim() - state.dim()))
    family = plan.structure.family(latent)
    return {latent: value} if family is None else family.apart(value, state.dim() - 1)


def _of_component(
    plan: Plan, component: GaussianComponent, entries: Tensor, leading: dict[str, int]
) -> dict[str, Tensor]:
    """The values of each latent of a component; ``leading`` learns of their batch dims."""
    values = {}
    for name in component.latents:
        if name not in plan.structure.shown_gaussian:
            continue
        values[name] = entries[..., entries_of(plan, component, [name])]
        leading[name] = values[name].dim() - plan.sites[name].event_dim
    return values


def _of_conjugate(
    plan: Plan, name: str, entries: Tensor, lead: tuple[int, ...], leading: dict[str, int]
) -> dict[str, Tensor]:
    """The same of a latent with a conjugate prior, whose entries have ``lead`` before them."""
    value = entries.reshape(*lead, *plan.sites[name].value.shape)
    leading[name] = value.dim() - plan.sites[name].event_dim
    return {name: value}


def _support(plan: Plan, name: str) -> Tensor:
    """The values of a latent in the order in which they are enumerated."""
    site, symbol = plan.sites[name], plan.latent_symbols[name]
    if symbol not in site.layout.outer:  # a single state
        return site.value.reshape(1, *site.value.shape[site.value.dim() - site.event_dim :])
    value = prepend_dims(site.value, len(site.layout.outer) + site.event_dim)
    index: list[int | slice] = [0] * len(site.layout.outer)
    index[site.layout.outer.index(symbol)] = slice(None)
    return value[tuple(index)]


def sample(plan: Plan, params: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Draws of latent and observed sites: ``n`` rows, or ``n`` data sets if there are no rows."""
    if not is_whole(n) or n < 1:
        raise ValueError(f"n={n!r} must be a whole number of at least 1.")
    if isinstance(plan, PlanWithoutData) and plan.example is not None:
        plan = plan.example
    row = plan.row_plate()
    if row is None and n > FEW and plan.structure.can_be_copied:
        found = _side_by_side(plan, params, n)
        if found is not None:
            return stack(found, dict.fromkeys(found, 1), plan.structure.steps)
    rounds = n if row is None else -(-n // row[1])
    drawn: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for _ in range(rounds):
            try:
                trace = plan.structure.simulate(params)
            except (AssertionError, NotImplementedError) as error:
                raise ValueError(
                    f"the model holds a distribution without a sampler ({error})."
                ) from error
            for name in _drawn(plan):
                for site in plan.structure.own_names(name):
                    drawn.setdefault(site, []).append(_by_row(trace.nodes[site], row))
    joined = {
        name: torch.stack(values) if row is None else torch.cat(values)[:n]
        for name, values in drawn.items()
    }
    return stack(joined, dict.fromkeys(joined, 1), plan.structure.steps)


def _side_by_side(plan: Plan, params: Mapping[str, Tensor], n: int) -> dict[str, Tensor] | None:
    """``n`` data sets by a few runs of the model; None where one has a part in another.

    So it is where a model takes a mean over what was drawn, of which copies are then a part.
    """
    structure = plan.structure
    names = [site for name in _drawn(plan) for site in structure.own_names(name)]
    pieces: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.no_grad():
        try:
            one = structure.simulate(params).nodes
            shapes = {name: one[name]["value"].shape for name in names}
            for begin in range(0, n, COPIES):
                copies = min(COPIES, n - begin)
                nodes = structure.simulate(params, copies).nodes
                drawn = {k: nodes[k]["value"].reshape(copies, *shapes[k]) for k in names}
                for i in (0, copies - 1) if not begin else ():
                    alone = {name: value[i] for name, value in drawn.items()}
                    again = structure.simulate(params, drawn=alone).nodes
                    if not all(_is_copy(again[k], nodes[k], copies, i) for k in names):
                        return None
                for name in names:
                    pieces[name].append(drawn[name])
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            return None  # each by itself says what is wrong
    return {name: torch.cat(values) for name, values in pieces.items()}


def _is_copy(alone: TraceNode, nodes: TraceNode, copies: int, place: int) -> bool:
    """Whether a site has the density that it has among other copies of the data."""
    every = nodes["fn"].log_prob(nodes["value"]).reshape(copies, -1)[place].sum()
    found = alone["fn"].log_prob(alone["value"]).sum()
    return bool(torch.isclose(every, found, rtol=SAME, atol=SAME))


def _drawn(plan: Plan) -> list[str]:
    """Latents and data; a ``pyro.factor`` statement and what is known of a latent are neither."""
    structure = plan.structure
    channels = [name for name in structure.observed if structure.is_channel(name)]
    return [
        name
        for name in (
            *structure.latent,
            *structure.shown_gaussian,
            *structure.conjugate,
            *structure.units,
            *structure.observed,
        )
        if plan.sites[name].value.numel() and name not in channels
    ]


def _by_row(node: TraceNode, row: tuple[str, int] | None) -> Tensor:
    """A site's draw with the plate of rows as its first dim."""
    value = node["value"]
    if row is None:
        return value
    event = node["fn"].event_dim
    batch = broadcast_shapes(node["fn"].batch_shape, value.shape[: value.dim() - event])
    value = value.expand(*batch, *value.shape[value.dim() - event :])
    plates = {plate.name: plate.dim + len(batch) for plate in plates_of(node)}
    rest = [dim for dim in sorted(plates.values()) if dim != plates[row[0]]]
    # Dims left of or between plates are of size 1: nothing is lost by leaving them out.
    kept = value.permute(
        plates[row[0]], *rest, *(d for d in range(len(batch)) if d not in plates.values()),
        *range(len(batch), value.dim()),
    )  # fmt: skip
    return kept.reshape(row[1], *(batch[d] for d in rest), *value.shape[len(batch) :])
