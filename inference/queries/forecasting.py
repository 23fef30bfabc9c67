"""What a chain says about neighbouring steps, and about the next one."""

import itertools
import warnings
from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.expectation.chains.evidence import pair_marginals, predictions
from ember.inference.expectation.posterior import chain_potentials, expectations
from ember.inference.factors.factor import Factor
from ember.inference.families.sticks import StickMap
from ember.inference.numerics.distribution import Distribution, remade
from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.map import ParameterMap
from ember.inference.parameters.scaled_matrix import ScaledMatrix
from ember.inference.parameters.superposed_rate import SuperposedRate
from ember.inference.plan.plan import Plan
from ember.inference.reading.composites import Composite
from ember.inference.reading.loops.loop import Loop
from ember.inference.reading.sequences import members

__all__ = ["forecast", "posterior_pairs"]


Params = Mapping[str, Tensor]


def posterior_pairs(plan: Plan, params: Params, name: str) -> Tensor:
    """Posterior of each two neighbouring steps of a chain, ``(*plates, T - 1, K, K)``.

    Raises:
        ValueError: If ``name`` is no chain.
    """
    if name in plan.chains:
        chains, rest = chain_potentials(plan, params, name)
        pairs = pair_marginals(chains)
        if not plan.chains[name].at_once:
            pairs = pairs[1:]  # the first state emits nothing and is no step
        return _rows_first(plan, name, rest, pairs, 2)
    steps = members(name, plan.structure.latent)
    if len(steps) < 2 or any(step not in plan.structure.steps for step in steps):
        raise ValueError(_no_chain(plan, name))
    return _unrolled_pairs(plan, params, steps)


def forecast(plan: Plan, params: Params, name: str) -> dist.Categorical | dist.MixtureSameFamily:
    """The distribution of a chain's state, or of its data, one step ahead.

    Warns:
        RuntimeWarning: If moves vary in time: the one past the data is not known.

    Raises:
        ValueError: If ``name`` is neither the latent nor the data of a chain, or the data of the
            next step cannot be told because emissions vary in time.
    """
    candidates = [c for c in plan.structure.chains if name in (c.latent, *_data_of(plan, c))]
    if not candidates:
        raise ValueError(_no_chain(plan, name))
    chain = candidates[0]
    chains, rest = chain_potentials(plan, params, chain.latent)
    ahead = predictions(chains)
    ahead = ahead if chain.at_once else ahead[1:]
    probs = _rows_first(plan, chain.latent, rest, ahead, 1)
    valid = False if probs.isnan().any() else None  # NaN follows impossible data
    states = dist.Categorical(probs=probs, validate_args=valid)
    compiled = plan.chains[chain.latent]
    if compiled.time in plan.factors[compiled.move].dims:
        warnings.warn(
            f"the moves of site '{chain.latent}' vary in time and the one past the data is not "
            "known, so the last entry of the forecast repeats the last move; for its own, pass the "
            "data with one more step that is missing (NaN), and its move, and read the last entry "
            "but one.",
            RuntimeWarning,
            stacklevel=3,
        )
    if name == chain.latent:
        return states
    if isinstance(chain, Loop):
        emission = _emission_of_loop(plan, params, chain, name)
    else:
        emission = _emission(plan, params, chain.site)
    if len(emission.batch_shape) > 1 and emission.batch_shape[-2] > 1:
        raise ValueError(
            f"the emissions of site '{name}' vary in time, so those of the next step are unknown; "
            f"forecast '{chain.latent}' and go on from its probabilities."
        )
    shape = (*states.batch_shape, states.probs.shape[-1])
    return dist.MixtureSameFamily(states, emission.expand(shape), validate_args=False)


def _data_of(plan: Plan, chain: Composite | Loop) -> list[str]:
    """The sites that a chain emits."""
    if isinstance(chain, Composite):
        return [chain.site]
    names = [family.name for family in chain.others if not family.latent]
    return [name for name in names if not plan.structure.is_channel(name)]


def _emission_of_loop(plan: Plan, params: Params, loop: Loop, name: str) -> Distribution:
    """The distribution of the data of a loop in each state, batch ``(*plates, T or 1, K)``."""
    site, chain = plan.sites[name], plan.sites[loop.latent]
    outer, inner = site.layout.outer, len(site.inner_shape)
    if site.density is None or site.plates != chain.plates | {loop.time}:
        raise ValueError(
            f"the emissions of site '{name}' have no distribution of a step to forecast with; "
            f"forecast '{loop.latent}' and go on from its probabilities."
        )
    first = [i for i, s in enumerate(outer) if s in chain.plates]
    order = [*first, outer.index(loop.time), outer.index(loop.symbol)]
    rest = [i for i in range(len(outer)) if i not in order]
    arguments = {}
    for by, argument in site.density.maps.values():
        value = argument.evaluate(params)
        event = value.dim() - _batch_dims(argument)
        value = prepend_dims(value, len(outer) + inner + event)
        if any(value.size(i) > 1 for i in rest):
            raise ValueError(
                f"the emissions of site '{name}' depend on another latent than the state of a "
                f"step; forecast '{loop.latent}' and go on from its probabilities."
            )
        moved = value.permute(*rest, *order, *range(len(outer), value.dim()))
        arguments[by] = moved.reshape(moved.shape[len(rest) :])
    fn = remade(site.density.base, arguments)
    return fn.to_event(inner) if inner else fn


def _batch_dims(argument: ParameterMap) -> int:
    """How many batch dims an argument has; a superposed rate has no others."""
    if isinstance(argument, SuperposedRate):
        return len(argument.shape)
    if isinstance(argument, AffineMap):
        return argument.index.dim() - argument.event_dim
    if isinstance(argument, ScaledMatrix):
        return argument.scale.index.dim()
    assert isinstance(argument, (ArgumentMap, StickMap))
    return argument.index.dim()


def _emission(plan: Plan, params: Params, name: str) -> Distribution:
    """The distribution of the data of a chain in each state, batch ``(..., K)``."""
    site = plan.sites[name]
    parts = [c.latent for c in plan.structure.composites if c.site == name and not c.time]
    densities = [each.density for each in (site, *(plan.sites[part] for part in parts))]
    if any(density is None for density in densities):
        raise ValueError(
            f"the emissions of site '{name}' have no distribution to forecast with; forecast "
            "the state of its chain and go on from its probabilities."
        )
    emission, *weights = (density.distribution(params) for density in densities if density)
    if site.inner_shape:
        emission = emission.to_event(len(site.inner_shape))
    for choice in weights:  # at most one: the state's emission is itself a mixture
        assert isinstance(choice, dist.Categorical)
        count = (*choice.batch_shape, choice.probs.shape[-1])
        shape = broadcast_shapes(emission.batch_shape, count)
        emission = dist.MixtureSameFamily(
            choice.expand(shape[:-1]), emission.expand(shape), validate_args=False
        )
    return emission


def _rows_first(plan: Plan, name: str, rest: tuple[str, ...], steps: Tensor, event: int) -> Tensor:
    """From ``(T, R, *event)`` to ``(*plates, T, *event)``."""
    others = [symbol for symbol in rest if symbol not in plan.sites[name].plates]
    if others:
        raise ValueError(
            f"the chain of site '{name}' depends on another latent; its steps cannot be told "
            "without it."
        )
    length, _, *tail = steps.shape
    assert len(tail) == event
    apart = steps.reshape(length, *(plan.sizes[s] for s in rest), *tail)
    plates = [s for s in plan.places(name) if s != plan.chains[name].time]
    order = [1 + rest.index(s) for s in plates if s in rest]
    apart = apart.permute(*order, 0, *range(1 + len(rest), apart.dim()))
    full = [plan.sizes[s] for s in plates]
    kept = [plan.sizes[s] if s in rest else 1 for s in plates]
    return apart.reshape(*kept, length, *tail).expand(*full, length, *tail)


def _unrolled_pairs(plan: Plan, params: Params, steps: list[str]) -> Tensor:
    """Of a chain written step by step: the expectation of each two neighbours."""
    probes = []
    for one, two in itertools.pairwise(steps):
        dims = (*plan.places(two), plan.latent_symbols[one], plan.latent_symbols[two])
        probes.append(Factor(f"{one}, {two}", dims, plan.sites[two].plates, plan.scales[two]))
    return torch.stack(expectations(plan, params, probes), -3)


def _no_chain(plan: Plan, name: str) -> str:
    chains = sorted(plan.chains)
    known = f"its chains are {chains}" if chains else "it has none"
    if plan.components:
        known += "; a series of Gaussian latents goes on with predictive(...), NaN for each step"
    return f"'{name}' is not the state of a hidden Markov chain of the model; {known}."
