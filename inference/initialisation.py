"""Where EM starts: responsibilities, then one M-step.

Starting from responsibilities rather than from parameters lets every family, prior and link find
its own starting values, by the same M-step that the loop uses.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.cluster.vq
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.expectation.chain_step import Chain
from ember.inference.expectation.enumeration import align
from ember.inference.lookup import MANY_LEVELS, levels_of
from ember.inference.maximisation import maximise, updates
from ember.inference.plan import Plan

__all__ = ["check_params", "starting_params"]

Init = str | Mapping[str, Tensor] | Callable[..., Mapping[str, Tensor]]
BLEND = 0.05  # share of the uniform in a k-means start: a probability of exactly 0 would stay 0
KMEANS_ROWS = 20_000
KMEANS_TRIES = 5
COMPLETIONS = 3  # of rows with missing entries, the responsibilities being as they are


def starting_params(plan: Plan, init: Init, tries: int = KMEANS_TRIES) -> dict[str, Tensor]:
    """Parameters to start from, by the user's choice of ``init``.

    Args:
        plan: The plan to start.
        init: "kmeans", "random", a (possibly partial) dict of constrained values, or a callable
            that returns one when given the model's arguments.
        tries: How many seedings of k-means to choose the best of; one gives more varied starts.

    Raises:
        ValueError: If a given value names no parameter, or has the wrong shape or support.
    """
    if callable(init):
        init = init(*plan.structure.arguments.args, **plan.structure.arguments.kwargs)
        if not isinstance(init, Mapping):
            raise TypeError(
                f"init returned {type(init).__name__}; a callable returns a dict of parameters."
            )
    default = {name: p.start.clone() for name, p in plan.structure.parameters.items()}
    if isinstance(init, str):
        return _from_responsibilities(plan, default, init, tries)
    given = check_params(plan, init, partial=True)
    if given.keys() == default.keys():
        return given
    return {**_from_responsibilities(plan, default, "kmeans", tries), **given}


def check_params(plan: Plan, params: Mapping[str, Any], partial: bool = False) -> dict[str, Tensor]:
    """Given parameters as float64 tensors, after checking names, shapes and supports."""
    known = plan.structure.parameters
    for name in params:
        if name not in known:
            raise ValueError(
                f"'{name}' is not a parameter of the model; its parameters are {sorted(known)}."
            )
    missing = sorted(known.keys() - params.keys())
    if missing and not partial:
        raise ValueError(f"values for the parameters {missing} are missing; give all of them.")
    checked = {}
    for name in [name for name in known if name in params]:
        value = _tensor(name, params[name])
        parameter = known[name]
        if value.shape != parameter.shape:
            raise ValueError(
                f"parameter '{name}' has shape {tuple(value.shape)} but the model declares "
                f"{tuple(parameter.shape)}; pass a tensor of that shape."
            )
        if not _within(parameter.support, value):
            raise ValueError(
                f"parameter '{name}' lies outside its support ({parameter.support}); pass values "
                "in the constrained space in which the model declares the site."
            )
        checked[name] = value
    return checked


def _within(support: Any, value: Tensor) -> bool:
    """Whether a value lies in a support or at its lower bound, which an M-step may reach."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, constraints.greater_than):
        return bool((value >= support.lower_bound).all())
    return bool(torch.as_tensor(support.check(value)).all())


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value).detach().to(torch.float64).clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"parameter '{name}' was given as {type(value).__name__}; pass a tensor of numbers."
        ) from error


def _from_responsibilities(
    plan: Plan, params: dict[str, Tensor], how: str, tries: int
) -> dict[str, Tensor]:
    if not plan.structure.latent:
        params = _apart(plan, params)
        return _completed(plan, params, _weights(plan, {})) if plan.has_gaps else params
    clusters = _kmeans(plan, tries) if how == "kmeans" else {}
    responsibilities = {
        name: clusters[name] if name in clusters else _random(plan, name)
        for name in plan.structure.latent
    }
    return _completed(plan, params, _weights(plan, responsibilities))


def _completed(
    plan: Plan, params: dict[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One M-step; where rows have gaps, a few more, each completing them given the last."""
    params = maximise(plan, plan.completed(params, weights, naive=True))
    for _ in range(COMPLETIONS if plan.has_gaps else 0):
        params = maximise(plan, plan.completed(params, weights))
    return params


def _apart(plan: Plan, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moves numerically updated parameters off their default, where equal entries may be stuck.

    A mixture whose latent was summed out by hand has a saddle where its components are equal.
    """
    for update in updates(plan):
        if update.how == "numerical":
            parameter = plan.structure.parameters[update.name]
            free = parameter.to_unconstrained(params[update.name])
            moved = parameter.to_constrained(free + 0.1 * torch.randn(free.shape))
            params[update.name] = moved.expand(parameter.shape).clone()
    return params


def _dims(plan: Plan, name: str) -> tuple[str, ...]:
    """The dims in which a latent has a value each, from left to right, then its own symbol."""
    return (*plan.places(name), plan.latent_symbols[name])


def _random(plan: Plan, name: str) -> Tensor:
    *plates, own = (plan.sizes[symbol] for symbol in _dims(plan, name))
    concentration = torch.full((*plates, own), 0.5)
    return torch.distributions.Dirichlet(concentration, validate_args=False).sample()


def _weights(plan: Plan, responsibilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The posterior weight of every factor's entries, latents taken as independent."""
    owner = {symbol: name for name, symbol in plan.latent_symbols.items()}
    weights = {}
    for name, chain in plan.chains.items():
        weights.update(_chain_weights(plan, name, chain, responsibilities[name]))
    for factor in plan.factors:
        if factor.name in weights:
            continue
        latents = [symbol for symbol in factor.dims if symbol in owner]
        plates = sorted(factor.plates)
        union = (*latents, *plates)
        weight = torch.ones([plan.sizes[s] if s in plates else 1 for s in union])
        for symbol in latents:
            own = responsibilities[owner[symbol]]
            weight = weight * align(own, _dims(plan, owner[symbol]), union)
        if factor.scale is not None:
            weight = weight * align(factor.scale.tensor, factor.scale.dims, union)
        gone = [i for i, symbol in enumerate(union) if symbol not in factor.dims]
        weight = weight.sum(gone) if gone else weight
        kept = tuple(symbol for symbol in union if symbol in factor.dims)
        weights[factor.name] = align(weight, kept, factor.dims)
    return weights


def _chain_weights(
    plan: Plan, name: str, chain: Chain, responsibilities: Tensor
) -> dict[str, Tensor]:
    """Of a chain's first state and of its moves, neighbouring steps taken as independent."""
    *plates, time, state = dims = _dims(plan, name)
    each = align(responsibilities, dims, (time, *plates, state))
    if chain.lengths is not None:
        own, lengths = chain.lengths
        order = torch.arange(chain.steps).reshape(-1, *(1,) * len(plates))
        each = each * (order < align(lengths, own, tuple(plates))).unsqueeze(-1)
    scale = plan.scales[name]
    weighed = each
    if scale is not None:
        weighed = each * align(scale.tensor, scale.dims, tuple(plates)).unsqueeze(-1)
    start = each[:1] if not chain.at_once else each[:0]
    before = torch.cat([start, each[:-1]])
    after = weighed if not chain.at_once else weighed[1:]
    pairs = before.unsqueeze(-1) * after.unsqueeze(-2)
    if chain.at_once:  # no move leads to the first step
        pairs = (
            torch.cat([torch.zeros_like(pairs[:1]), pairs]) if len(pairs) else pairs.sum(0, True)
        )
    found = {}
    moves = (time, *plates, chain.previous, state)
    for place, tensor, union in (
        (chain.initial, weighed[0], (*plates, state)),
        (chain.move, pairs, moves),
    ):
        factor = plan.factors[place]
        gone = [i for i, symbol in enumerate(union) if symbol not in factor.dims]
        total = tensor.sum(gone) if gone else tensor
        kept = tuple(symbol for symbol in union if symbol in factor.dims)
        found[factor.name] = align(total, kept, factor.dims)
    return found


def _kmeans(plan: Plan, tries: int) -> dict[str, Tensor]:
    """Responsibilities from k-means on the data that each latent explains, standardised.

    Latents with as many states and features, such as the steps of a chain, share one clustering.
    Latents without data of their own are left out.
    """
    pools: dict[tuple[int, int], list[tuple[str, Tensor]]] = {}
    for name, features in _features(plan).items():
        states = plan.sizes[plan.latent_symbols[name]]
        pools.setdefault((states, features.shape[1]), []).append((name, features))
    found = {}
    for (states, _), members in pools.items():
        data = torch.cat([features for _, features in members])
        labels = _cluster(_standardise(data), states, tries)
        one_hot = torch.nn.functional.one_hot(labels, states).to(torch.float64)
        soft = (1.0 - BLEND) * one_hot + BLEND / states
        pieces = soft.split([len(features) for _, features in members])
        for (name, _), piece in zip(members, pieces, strict=True):
            found[name] = piece.reshape([plan.sizes[s] for s in _dims(plan, name)])
    return found


def _features(plan: Plan) -> dict[str, Tensor]:
    """For each latent, the data below it as rows (one for each of its plates' entries)."""
    order = {symbol: i for i, symbol in enumerate(plan.latent_symbols.values())}
    names = list(plan.latent_symbols)
    columns: dict[str, list[Tensor]] = {}
    for factor in plan.factors:
        latents = [symbol for symbol in factor.dims if symbol in order]
        if plan.sites[factor.name].value.numel() == 0:  # a pyro.factor statement
            continue
        if factor.name not in plan.structure.observed or not latents:
            continue
        if levels_of(plan.sites[factor.name]) > MANY_LEVELS:  # words are all equally far apart
            continue
        # A site below several latents (x_t below the states t-1 and t) is the last one's.
        name = names[max(order[symbol] for symbol in latents)]
        plates = _dims(plan, name)[:-1]
        if plan.sites[name].plates <= factor.plates:
            columns.setdefault(name, []).append(_rows(plan, factor.name, plates))
    return {name: torch.cat(parts, 1) for name, parts in columns.items()}


def _rows(plan: Plan, name: str, plates: tuple[str, ...]) -> Tensor:
    site = plan.sites[name]
    value, outer = site.value, site.layout.outer
    event = value.shape[value.dim() - site.event_dim :]
    if site.missing is not None:
        value = value.masked_fill(site.missing, 0)
    value = value.expand([plan.sizes[s] if s in site.plates else 1 for s in outer] + list(event))
    shape = value.shape
    if site.density is not None and type(site.density.base).__name__ == "Categorical":
        value = torch.nn.functional.one_hot(value.long().clamp_min(0))
    value = value.to(torch.float64)
    if site.missing is not None:
        missing = site.missing.expand(shape)
        missing = missing.unsqueeze(-1) if value.dim() > len(shape) else missing
        value = value.masked_fill(missing, torch.nan)
    first = [outer.index(symbol) for symbol in plates]
    rest = [i for i in range(value.dim()) if i not in first]
    rows = torch.Size([plan.sizes[s] for s in plates]).numel()
    return value.permute(*first, *rest).reshape(rows, -1)


def _standardise(data: Tensor) -> Tensor:
    missing = ~torch.isfinite(data)
    shown = data.masked_fill(missing, torch.nan)
    mean = shown.nanmean(0).nan_to_num()
    centred = (shown - mean).nan_to_num()
    scale = centred.square().mean(0).sqrt()
    return centred / torch.where(scale > 0, scale, torch.ones(()))


def _cluster(data: Tensor, states: int, tries: int) -> Tensor:
    """k-means++ on at most ``KMEANS_ROWS`` rows, the best of a few tries; labels of all rows."""
    generator = np.random.default_rng(int(torch.randint(2**31, ())))
    rows = data.numpy()
    sample = rows
    if len(rows) > KMEANS_ROWS:
        sample = rows[generator.choice(len(rows), KMEANS_ROWS, replace=False)]
    best, lowest = None, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster only means fewer distinct centres
        for _ in range(tries if states > 1 else 1):
            centres, _ = scipy.cluster.vq.kmeans2(
                sample, states, iter=20, minit="++", missing="warn",
                rng=generator,
            )  # fmt: skip
            labels, distances = scipy.cluster.vq.vq(rows, centres)
            inertia = float((distances**2).sum())
            if best is None or inertia < lowest:
                best, lowest = labels, inertia
    return torch.from_numpy(np.asarray(best, dtype=np.int64))
