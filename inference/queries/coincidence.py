"""States of a latent that have come to the same estimates: then one of them is not needed.

Two states coincide if nothing tells them apart: each factor that depends on the state has the same
log probability at both, row by row (how probable the states themselves are aside). That does not
depend on the units of the data, nor on where their zero is.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.potentials import all_tensors
from ember.inference.queries.component_axes import component_axes, numberings

__all__ = ["coinciding", "coinciding_pairs"]


ALIKE = 1e-3  # difference of two parameter entries, relative, of states that may coincide
MOST_NUMBERS = 20_000_000  # in the factors, which are all computed to make sure


def coinciding(plan: Plan, params: Params, tolerance: float) -> tuple[str, int, int] | None:
    """The first two states that coincide, and their latent site; None if all are distinct.

    Args:
        plan: The plan of the model.
        params: Constrained parameters.
        tolerance: The largest difference of a log probability at which two states are the same.
    """
    return next(coinciding_pairs(plan, params, tolerance), None)


def coinciding_pairs(
    plan: Plan, params: Params, tolerance: float
) -> Iterator[tuple[str, int, int]]:
    """Every two states that coincide, and their latent site; see ``coinciding``."""
    numbers = sum(math.prod(plan.sizes[d] for d in f.dims) for f in plan.factors)
    if numbers > MOST_NUMBERS:
        return
    tensors: list[Tensor] | None = None
    for label, names in numberings(plan).items():
        states = plan.sizes.get(plan.latent_symbols[names[0]], 1)
        pairs = _candidates(plan, params, label, names, states)
        if not pairs:
            continue
        if tensors is None:
            with torch.no_grad():
                tensors = all_tensors(plan, params)
        for i, j in pairs:
            if _coincide(plan, tensors, names, i, j, tolerance):
                yield label, i, j


def _candidates(
    plan: Plan, params: Params, label: str, names: tuple[str, ...], states: int
) -> list[tuple[int, int]]:
    """Pairs of states whose own parameters are about equal; all pairs where there are none."""
    alike = torch.ones(states, states, dtype=torch.bool).triu(1)
    of_weights = set[str]()  # parameters that say how probable the states are
    for name in names:
        density = plan.sites[name].density
        of_weights |= {s for _, m in density.maps.values() for s in m.sources} if density else set()
    for name, axes in component_axes(plan, label).items():
        value = params[name]
        if name in of_weights or len(axes) != 1 or not value.numel():
            continue
        rows = value.movedim(axes[0], 0).reshape(states, -1)
        apart = (rows.unsqueeze(0) - rows.unsqueeze(1)).abs().amax(-1)
        alike &= ~(apart > ALIKE * float(value.abs().max()))
    return [(int(i), int(j)) for i, j in alike.nonzero()]


def _coincide(
    plan: Plan, tensors: list[Tensor], names: tuple[str, ...], i: int, j: int, tolerance: float
) -> bool:
    """Whether every factor below two states, or after them in a chain, is the same at both."""
    is_below = False
    for factor, tensor in zip(plan.factors, tensors, strict=True):
        for name in names:
            symbols = {plan.latent_symbols[name]} if factor.name != name else set[str]()
            if name in plan.chains:
                symbols = symbols - _firsts(plan, name, factor.name)
                symbols = symbols | {plan.chains[name].previous}
            for symbol in symbols & set(factor.dims):
                axis = factor.dims.index(symbol)
                if tensor.size(axis) <= max(i, j):
                    continue
                is_below = True
                apart = (tensor.select(axis, i) - tensor.select(axis, j)).abs()
                if not bool((apart <= tolerance).all()):
                    return False
    return is_below


def _firsts(plan: Plan, name: str, factor: str) -> set[str]:
    """The dim of the state in a factor that only says how probable the first states are."""
    chain = plan.chains[name]
    of_chain = {plan.factors[chain.initial].name, plan.factors[chain.move].name}
    return {plan.latent_symbols[name]} if factor in of_chain else set()
