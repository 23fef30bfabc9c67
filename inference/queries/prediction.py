"""What a plan says about latent values and new draws, at given parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.expectation.posterior import marginals
from ember.inference.numerics.shapes import append_dims, prepend_dims
from ember.inference.plan.plan import Plan
from ember.inference.queries.conjugate.posterior import conjugate_posterior
from ember.inference.queries.impossible import blank
from ember.inference.reading.sequences import members, stack
from ember.inference.reading.trace import TraceNode, plates_of

__all__ = ["posterior", "predict", "sample"]


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
            f"'{name}' is not a latent site of the model; its latent sites are "
            f"{[*latents, *plan.structure.conjugate]}."
        )
    by_step = marginals(plan, params, steps)
    return torch.stack([by_step[step] for step in steps], -2)


def predict(plan: Plan, params: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """The most probable joint value of all latent sites; NaN or -1 for impossible data.

    Latents with conjugate priors are averaged over; where there are no others, it is their means.

    Raises:
        ValueError: If the model has no latent sites.
    """
    latents = list(plan.structure.latent)
    if not latents and plan.conjugate:
        means = {name: _mean(plan, params, name) for name in plan.structure.conjugate}
        return next(iter(means.values())) if len(means) == 1 else means
    if not latents:
        raise ValueError("the model has no latent sites to predict.")
    best = marginals(plan, params, latents, maximum=True)
    values: dict[str, Tensor] = {}
    for latent in latents:
        marginal = best[latent]
        chosen = _support(plan, latent)[marginal.argmax(-1)]
        gone = append_dims(marginal.isnan().any(-1), chosen.dim() - marginal.dim() + 1)
        value = blank(chosen, gone)
        family = plan.structure.family(latent)
        if family is not None:
            values.update(family.apart(value, marginal.dim() - 2))
        else:
            values[latent] = value
    leading = {name: value.dim() for name, value in values.items()}
    joined = stack(values, leading, plan.structure.steps)
    return next(iter(joined.values())) if len(joined) == 1 else joined


def _mean(plan: Plan, params: Mapping[str, Tensor], name: str) -> Tensor:
    found = conjugate_posterior(plan, params, name)
    assert found is not None
    return found.mean


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
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r} must be a whole number of at least 1.")
    row = plan.row_plate()
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


def _drawn(plan: Plan) -> list[str]:
    """Latents and data; a ``pyro.factor`` statement and what is known of a latent are neither."""
    structure = plan.structure
    channels = [name for name in structure.observed if structure.is_channel(name)]
    of_rows = [
        n for n in structure.conjugate if plan.row is None or plan.row in plan.sites[n].plates
    ]
    return [
        name
        for name in (*structure.latent, *of_rows, *structure.observed)
        if plan.sites[name].value.numel() and name not in channels
    ]


def _by_row(node: TraceNode, row: tuple[str, int] | None) -> Tensor:
    """A site's draw with the plate of rows as its first dim."""
    value = node["value"]
    if row is None:
        return value
    event = node["fn"].event_dim
    batch = torch.broadcast_shapes(node["fn"].batch_shape, value.shape[: value.dim() - event])
    value = value.expand(*batch, *value.shape[value.dim() - event :])
    plates = {plate.name: plate.dim + len(batch) for plate in plates_of(node)}
    rest = [dim for dim in sorted(plates.values()) if dim != plates[row[0]]]
    # Dims left of or between plates are of size 1: nothing is lost by leaving them out.
    kept = value.permute(
        plates[row[0]], *rest, *(d for d in range(len(batch)) if d not in plates.values()),
        *range(len(batch), value.dim()),
    )  # fmt: skip
    return kept.reshape(row[1], *(batch[d] for d in rest), *value.shape[len(batch) :])
