"""Derivatives of what a model's sites are made of by its Gaussian latents, exact to rounding.

A location that is linear in the latents moves with a direction of theirs by an amount that one
forward-mode run of the model shows: no difference of two runs, which would lose digits to an
intercept.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ember.inference.numerics.distribution import Distribution
from ember.inference.reading.structure import Structure
from ember.inference.reading.unwrapping import given_arguments, unwrap

__all__ = ["Directions", "locations_at", "readers", "tangents"]


Params = Mapping[str, Tensor]
Directions = Mapping[str, Tensor]


def readers(
    structure: Structure, params: Params, sites: Iterable[str], latents: Params
) -> dict[str, list[str]]:
    """For each site those of the ``latents``, which have values, that its distribution reads."""
    with torch.enable_grad():
        leaves = {n: value.clone().requires_grad_() for n, value in latents.items()}
        trace = structure.trace({**params, **leaves})
        found = {}
        for name in sites:
            arguments = _arguments(trace.nodes[name]["fn"])
            moved = [value.sum() for value in arguments.values() if value.requires_grad]
            if not moved:
                found[name] = list[str]()
                continue
            gradients = torch.autograd.grad(
                moved, list(leaves.values()), allow_unused=True, retain_graph=True
            )
            each = zip(leaves, gradients, strict=True)
            found[name] = [latent for latent, g in each if g is not None]
    return found


def tangents(
    structure: Structure, params: Params, directions: Directions, sites: Iterable[str]
) -> dict[str, dict[str, Tensor]]:
    """How the arguments of sites move as latents leave zero in given directions.

    Returns:
        For each site the derivative of every argument that moves.
    """
    out: dict[str, dict[str, Tensor]] = {}
    with torch.no_grad(), forward_ad.dual_level():
        duals = {n: forward_ad.make_dual(torch.zeros_like(d), d) for n, d in directions.items()}
        trace = structure.trace({**params, **duals})
        for name in sites:
            out[name] = {}
            for argument, value in _arguments(trace.nodes[name]["fn"]).items():
                tangent = forward_ad.unpack_dual(value).tangent
                if tangent is not None:
                    out[name][argument] = tangent.detach().clone()
    return out


def locations_at(
    structure: Structure, params: Params, latents: Params, sites: Iterable[str]
) -> dict[str, dict[str, Tensor]]:
    """The arguments of sites where latents have given values."""
    with torch.no_grad():
        trace = structure.trace({**params, **latents})
    return {name: _arguments(trace.nodes[name]["fn"]) for name in sites}


def _arguments(fn: Distribution) -> dict[str, Tensor]:
    """The tensors that a distribution was made from."""
    return {name: value for name, (_, value) in given_arguments(unwrap(fn).base).items()}
