"""Derivatives of what a model's sites are made of by its Gaussian latents, exact to rounding.

A location that is linear in the latents moves with a direction of theirs by an amount that its
derivative shows: no difference of two runs, which would lose digits to an intercept.
"""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.forward_derivative import ForwardDerivatives
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import given_arguments, unwrap

__all__ = ["Directions", "Params", "Tangents", "arguments_at", "arguments_in", "readers"]


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


class Tangents:
    """How the arguments of sites move as latents leave zero, at one value of the parameters.

    The model is run once; its graph serves all directions.

    Args:
        structure: The model.
        params: The parameters.
        sites: The sites that read latents.
    """

    def __init__(self, structure: Structure, params: Params, sites: Collection[str]) -> None:
        self.sites = list(sites)
        with torch.enable_grad():
            leaves = {
                n: torch.zeros(shape).requires_grad_() for n, shape in structure.gaussian.items()
            }
            trace = structure.trace({**params, **leaves})
        self.latents = list(leaves)
        self.arguments = {
            (name, argument): value
            for name in self.sites
            for argument, value in _arguments(trace.nodes[name]["fn"]).items()
            if value.requires_grad
        }
        self.derivatives = ForwardDerivatives(list(self.arguments.values()), list(leaves.values()))

    def along(self, directions: Directions) -> dict[str, dict[str, Tensor]]:
        """For each site the derivative of every argument that some latent moves."""
        used = [i for i, name in enumerate(self.latents) if name in directions]
        moved = self.derivatives.along(used, [directions[self.latents[i]] for i in used])
        out: dict[str, dict[str, Tensor]] = {name: {} for name in self.sites}
        for (name, argument), derivative in zip(self.arguments, moved, strict=True):
            out[name][argument] = derivative
        return out


def arguments_at(
    structure: Structure, params: Params, latents: Params, sites: Iterable[str]
) -> dict[str, dict[str, Tensor]]:
    """The arguments of sites where latents have given values."""
    with torch.no_grad():
        return arguments_in(structure.trace({**params, **latents}), sites)


def arguments_in(trace: Trace, sites: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """The arguments of sites in a run."""
    return {name: _arguments(trace.nodes[name]["fn"]) for name in sites}


def _arguments(fn: Distribution) -> dict[str, Tensor]:
    """The tensors that a distribution was made from."""
    return {name: value for name, (_, value) in given_arguments(unwrap(fn).base).items()}
