"""Derivatives of several numbers at once, in one backward pass where every operation allows it."""

import contextlib

import torch
from torch import Tensor

from ember.inference.numerics.threads import one_thread

__all__ = ["products", "rows_of_derivative"]


def products(outputs: Tensor, inputs: Tensor, weights: Tensor, together: bool = True) -> Tensor:
    """The derivative of each weighted sum of outputs by the inputs.

    Args:
        outputs: What was computed from the inputs under a graph, of any shape.
        inputs: A leaf.
        weights: Of the outputs in each sum, ``(B, *outputs.shape)``.
        together: Whether to take them in one go, if that can be: few numbers are at work.

    Returns:
        The derivatives, ``(B, *inputs.shape)``.
    """

    def derivative(one: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(outputs, inputs, one, retain_graph=True, allow_unused=True)
        return torch.zeros_like(inputs) if found is None else found

    if not outputs.requires_grad:
        return weights.new_zeros(len(weights), *inputs.shape)
    if together:
        with contextlib.suppress(RuntimeError), one_thread():
            every: Tensor = torch.func.vmap(derivative)(weights)
            return every
    return torch.stack([derivative(one) for one in weights])


def rows_of_derivative(outputs: Tensor, inputs: Tensor) -> Tensor:
    """The Jacobian of outputs ``(M,)`` by a leaf ``(P,)``, ``(M, P)``."""
    return products(outputs, inputs, torch.eye(len(outputs)).to(outputs))
