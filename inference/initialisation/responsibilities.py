"""Responsibilities of latents as weights of factors: what the first M-step is given."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.factors.chain import Chain
from ember.inference.factors.factor import align
from ember.inference.initialisation.features import dims_of, inside_chain
from ember.inference.plan.plan import Plan

__all__ = ["weights_of"]


def weights_of(
    plan: Plan, responsibilities: Mapping[str, Tensor], stay: float | None = None
) -> dict[str, Tensor]:
    """The posterior weight of every factor's entries, latents taken as independent.

    Moves of chains keep to their state with weight ``stay`` instead, if given.
    """
    owner = {symbol: name for name, symbol in plan.latent_symbols.items()}
    weights = {}
    for name, chain in plan.chains.items():
        weights.update(_chain_weights(plan, name, chain, responsibilities[name], stay))
    for factor in plan.factors:
        if factor.name in weights:
            continue
        latents = [symbol for symbol in factor.dims if symbol in owner]
        plates = sorted(factor.plates)
        union = (*latents, *plates)
        weight = torch.ones([plan.sizes[s] if s in plates else 1 for s in union])
        for symbol in latents:
            latent = owner[symbol]
            weight = weight * align(responsibilities[latent], dims_of(plan, latent), union)
        for name, chain in plan.chains.items():
            if chain.previous in factor.dims:  # data that depend on two neighbouring states
                before = _one_before(responsibilities[name], plan.places(name).index(chain.time))
                dims = (*plan.places(name), chain.previous)
                latents.append(chain.previous)
                union = (*latents, *plates)
                weight = weight.unsqueeze(len(latents) - 1) * align(before, dims, union)
        if factor.scale is not None:
            weight = weight * align(factor.scale.tensor, factor.scale.dims, union)
        gone = [i for i, symbol in enumerate(union) if symbol not in factor.dims]
        weight = weight.sum(gone) if gone else weight
        kept = tuple(symbol for symbol in union if symbol in factor.dims)
        weights[factor.name] = align(weight, kept, factor.dims)
    return weights


def _one_before(responsibilities: Tensor, time: int) -> Tensor:
    """Those of the step before; the first step, before which there is none, stays as it is."""
    last = responsibilities.size(time) - 1
    first = responsibilities.narrow(time, 0, 1)
    return torch.cat([first, responsibilities.narrow(time, 0, last)], time)


def _chain_weights(
    plan: Plan, name: str, chain: Chain, responsibilities: Tensor, stay: float | None
) -> dict[str, Tensor]:
    """Of a chain's first state and of its moves, neighbouring steps independent or ``stay``ing."""
    *plates, time, state = dims = dims_of(plan, name)
    each = align(responsibilities, dims, (time, *plates, state))
    each = each * inside_chain(chain, tuple(plates)).unsqueeze(-1)
    scale = plan.scales[name]
    weighed = each
    if scale is not None:
        weighed = each * align(scale.tensor, scale.dims, tuple(plates)).unsqueeze(-1)
    start = each[:1] if not chain.at_once else each[:0]
    before = torch.cat([start, each[:-1]])
    after = weighed if not chain.at_once else weighed[1:]
    if stay is None:
        pairs = before.unsqueeze(-1) * after.unsqueeze(-2)
    else:
        count = plan.sizes[state]
        moves = stay * torch.eye(count) + (1.0 - stay) / count
        pairs = before.unsqueeze(-1) * moves * after.sum(-1)[..., None, None]
    if chain.at_once:  # no move leads to the first step
        pairs = (
            torch.cat([torch.zeros_like(pairs[:1]), pairs]) if len(pairs) else pairs.sum(0, True)
        )
    weights = {}
    for position, tensor, union in (
        (chain.initial, weighed[0], (*plates, state)),
        (chain.move, pairs, (time, *plates, chain.previous, state)),
    ):
        factor = plan.factors[position]
        gone = [i for i, symbol in enumerate(union) if symbol not in factor.dims]
        total = tensor.sum(gone) if gone else tensor
        kept = tuple(symbol for symbol in union if symbol in factor.dims)
        weights[factor.name] = align(total, kept, factor.dims)
    return weights
