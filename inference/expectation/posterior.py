"""Posteriors of latents at given parameters: marginals, and expectations of any extra factor."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ember.inference.expectation.chains.blocks import Potentials
from ember.inference.expectation.elimination import Contraction
from ember.inference.factors.chain import Chain
from ember.inference.factors.factor import Factor, align
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.potentials import all_tensors
from ember.inference.reading.opaque import model_log_prob

__all__ = ["chain_potentials", "expectations", "marginals", "probe"]


def marginals(
    plan: Plan, params: Params, names: Sequence[str], maximum: bool = False
) -> dict[str, Tensor]:
    """Posterior marginals of latent sites, shape ``(*plates, K)``; or of the best joint value.

    With ``maximum`` the sum over latents becomes a maximum, and the result is one-hot at the
    most probable joint value (for a chain: the Viterbi path).
    """
    probes = [probe(plan, name) for name in names]
    found = expectations(plan, params, probes, maximum=maximum)
    return {p.name: weights.movedim(0, -1) for p, weights in zip(probes, found, strict=True)}


def probe(plan: Plan, name: str) -> Factor:
    """An extra factor that a latent alone depends on: its expectation is the posterior."""
    dims = (plan.latent_symbols[name], *plan.places(name))
    return Factor(name, dims, plan.sites[name].plates, plan.scales[name])


def expectations(
    plan: Plan,
    params: Params,
    probes: Sequence[Factor],
    tensors: Sequence[Tensor] | None = None,
    maximum: bool = False,
) -> list[Tensor]:
    """Posterior probability of the latent values that extra factors depend on, by plates.

    Args:
        plan: The plan of the model.
        params: The parameters.
        probes: Extra factors whose dims name their latents and each plate of the factor.
        tensors: Their log probabilities; zeros unless given.
        maximum: Whether to maximise over the latents instead of summing.

    Returns:
        A tensor of each probe's dims; over the latents' values it sums to one. It is NaN for
        data of probability zero, which no posterior explains.
    """
    shapes = [[plan.sizes[d] for d in probe.dims] for probe in probes]
    kept = [
        Factor(p.name, tuple(d for d in p.dims if plan.sizes[d] > 1), p.plates, p.scale)
        for p in probes
    ]
    contraction = Contraction(
        (*plan.factors, *kept), plan.latents(), plan.sizes, _whole_chains(plan)
    )
    with torch.no_grad():
        factors = _whole_tensors(plan, params)
    given = [factors[0].new_zeros(s) for s in shapes] if tensors is None else tensors
    with torch.enable_grad():
        leaves = [
            t.reshape([n for n in shape if n > 1]).clone().requires_grad_()
            for t, shape in zip(given, shapes, strict=True)
        ]
        parts = [p for p in contraction([*factors, *leaves], maximum) if p.requires_grad]
        # NaN finds its way back to all that an impossible part depends on.
        ones = [torch.where(p <= 0.1 * IMPOSSIBLE, torch.nan, 1.0) for p in parts]
        gradients = torch.autograd.grad(parts, leaves, ones, allow_unused=True) if parts else ()
    out = []
    for extra, shape, leaf, g in zip(probes, shapes, leaves, gradients, strict=True):
        weights = (torch.ones_like(leaf) if g is None else g).reshape(shape)
        over = [i for i, d in enumerate(extra.dims) if d in plan.latent_symbols.values()]
        total = weights.sum(over, keepdim=True) if over else leaf.new_ones(())
        # Beyond the end of a chain nothing is known: every value is as likely as another.
        alike = 1.0 / torch.Size([shape[i] for i in over]).numel()
        out.append(torch.where(total == 0, alike, weights / total))
    return out


def chain_potentials(plan: Plan, params: Params, name: str) -> tuple[Potentials, tuple[str, ...]]:
    """The log potentials of the chain of a latent site, and the dims of its rows."""
    with torch.no_grad():
        tensors = _whole_tensors(plan, params)
        whole = Contraction(plan.factors, plan.latents(), plan.sizes, _whole_chains(plan))
        return whole.potentials(tensors, plan.latent_symbols[name])


def _whole_chains(plan: Plan) -> list[Chain]:
    """The chains, steps of loops not left out: the model draws a state there all the same."""
    loops = {loop.latent for loop in plan.structure.loops}
    return [
        dataclasses.replace(chain, lengths=None) if name in loops else chain
        for name, chain in plan.chains.items()
    ]


def _whole_tensors(plan: Plan, params: Params) -> list[Tensor]:
    """The log probability of every factor, entries of latents that sum to one not left out."""
    tensors = all_tensors(plan, params)
    for i, factor in enumerate(plan.factors):
        if factor.name not in plan.idle:
            continue
        site = dataclasses.replace(plan.sites[factor.name], mask=None)
        if site.density is None:
            log_prob = model_log_prob(site, plan.structure.trace(params))
        else:
            density = dataclasses.replace(site.density, mask=None)
            log_prob = density.log_prob(params, site.value)
        whole = align(*site.layout.pack(log_prob), factor.dims)
        tensors[i] = whole.expand(tensors[i].shape)
    return tensors
