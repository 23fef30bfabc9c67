"""Renumbering the states of a latent site: into a canonical order, or one that the user gives.

The states of a latent site are exchangeable names: renumbering them, in all parameters at once,
changes no density. Two fits can therefore agree and still look different, so fits are put in one
order, for any model.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.expectation.posterior import marginals
from ember.inference.factors.factor import align as spread
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.parameters.supports import all_within, is_real
from ember.inference.plan.plan import Near, Plan
from ember.inference.queries.component_axes import component_axes, members_of, numberings
from ember.inference.reading.matching.arguments import probe_values

__all__ = [
    "Params",
    "asked_order",
    "canonical_order",
    "canonical_orders",
    "exchangeable",
    "explained",
    "in_canonical_order",
    "is_same_density",
    "permute",
]


Params = Mapping[str, Tensor]
MOST_NUMBERS = 20_000_000  # in the factors of a model that is asked at random parameters


def permute(
    plan: Plan, params: Params, latent: str, order: Sequence[int] | Tensor, lead: int = 0
) -> dict[str, Tensor]:
    """Parameters with the states of a latent site renumbered: new state ``i`` is ``order[i]``.

    Args:
        plan: The plan of the model.
        params: Constrained parameters.
        latent: A latent site, or the common name of its steps.
        order: A permutation of the states.
        lead: How many dims there are before those of the parameters, as of draws.

    Returns:
        A new dict of parameters, with the same densities as long as priors treat states alike.

    Raises:
        ValueError: If ``order`` is no permutation of the states, or no latent has this name.
    """
    states = plan.sizes.get(plan.latent_symbols[members_of(plan, latent)[0]], 1)
    index = torch.as_tensor(order, dtype=torch.long)
    if sorted(index.tolist()) != list(range(states)):
        raise ValueError(
            f"order={index.tolist()} is no permutation of the {states} states of '{latent}'."
        )
    moved = dict(params)
    for name, axes in component_axes(plan, latent).items():
        for axis in axes:
            moved[name] = moved[name].index_select(lead + axis, index)
    return moved


def canonical_order(plan: Plan, params: Params, latent: str) -> list[int]:
    """States by decreasing share of the data that they explain."""
    shares = explained(plan, params, latent)
    return [int(i) for i in torch.argsort(shares, descending=True, stable=True)]


def explained(plan: Plan, params: Params, latent: str) -> Tensor:
    """How many rows (of chains: steps) each state of a latent site explains, ``(K,)``."""
    names = list(members_of(plan, latent))
    swept = LogEvidence.of(plan).explained(params)
    if swept is not None:
        return swept
    posteriors, shares = marginals(plan, params, names), torch.zeros(())
    for name in names:
        probs, scale = posteriors[name].nan_to_num(), plan.scales[name]
        if scale is not None:  # a row that counts three times explains three rows
            probs = probs * spread(scale.tensor, scale.dims, plan.places(name)).unsqueeze(-1)
        shares = shares + probs.reshape(-1, probs.shape[-1]).sum(0)
    return shares


def in_canonical_order(plan: Plan, params: Params) -> dict[str, Tensor]:
    """Parameters with the states of every latent in canonical order, where they are exchangeable.

    States are exchangeable if renumbering them leaves the density as it is at random parameters,
    and every parameter inside its support. States that differ by an accident of the estimates
    only, or whose parameters are ordered, keep their numbers. So do those whose renumbering shows
    at the estimates: far from the data, what tells states apart drowns in a density of -1e30.
    """
    ordered = dict(params)
    for latent, order in canonical_orders(plan, params).items():
        ordered = permute(plan, ordered, latent, order)
    return ordered


def canonical_orders(plan: Plan, params: Params) -> dict[str, list[int]]:
    """The canonical order of the states of every latent that are exchangeable and not yet in it."""
    found = dict[str, list[int]]()
    if not numberings(plan):
        return found
    probe, ordered = _probe(plan), dict(params)
    with torch.no_grad():
        for latent in numberings(plan):
            order = canonical_order(plan, ordered, latent)
            if order == list(range(len(order))):
                continue
            moved = permute(plan, ordered, latent, order)
            elsewhere = permute(plan, probe, latent, order)
            if is_same_density(plan, ordered, moved) and is_same_density(plan, probe, elsewhere):
                ordered, found[latent] = moved, order
    return found


def exchangeable(plan: Plan, latent: str, start: Params) -> bool:
    """Whether the states of a latent are mere names, by the densities at random parameters.

    And at a start: far from the data, what tells states apart drowns in a density of -1e30.
    Data too large to be asked twice are not asked: then the states count as mere names.
    """
    return plan.once(_exchangeable, members_of(plan, latent)[0], Near(start))


def _exchangeable(plan: Plan, label: str, near: Near) -> bool:
    states = plan.sizes.get(plan.latent_symbols[label], 1)
    numbers = sum(math.prod(plan.sizes[d] for d in f.dims) for f in plan.factors)
    points, every = (_probe(plan), near.params), list(range(states))
    with torch.no_grad():
        if states < 2 or numbers > MOST_NUMBERS:
            return True
        orders = [[1, 0, *every[2:]], [*every[1:], 0]][: states - 1]
        return all(
            is_same_density(plan, point, *(permute(plan, point, label, o) for o in orders))
            for point in points
        )


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


def asked_order(
    plan: Plan, params: Params, order: Sequence[int] | str | None, latent: str | None
) -> tuple[str, list[int]]:
    """A latent, and a canonical or a given order of its states; see ``Fit.relabel``.

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
    moved = permute(plan, params, latent, order)
    if not is_same_density(plan, params, moved):
        raise ValueError(
            f"the states of '{latent}' cannot be renumbered: the model's priors or data tell them "
            "apart."
        )
    return latent, [int(state) for state in order]


def is_same_density(plan: Plan, before: Params, *renumbered: Params) -> bool:
    """Whether renumberings left the log joint as it was, as they must for exchangeable states.

    A density may go on outside the support (that of ordered locations does), where no fit may end.
    Where the model cannot be evaluated, nothing is known, and the numbers stay.
    """
    if not all(all_within(plan.structure.parameters, after) for after in renumbered):
        return False
    with torch.no_grad():
        try:
            old, *new = (
                float(LogEvidence.of(plan)(p) + plan.prior.log_prob(p))
                for p in (before, *renumbered)
            )
        except (RuntimeError, ArithmeticError):
            return False
    return all(abs(each - old) <= 1e-9 * (1.0 + abs(old)) or (old == each) for each in new)
