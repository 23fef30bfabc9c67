"""Derivatives along a direction, of all of a function's outputs at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["forward_derivative"]


def forward_derivative(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], directions: Sequence[Tensor | None]
) -> list[Tensor]:
    """The derivative of each output as the inputs move along their directions; exact to rounding.

    Two backward passes: the first is linear in the weights of the outputs, and the second
    differentiates by these weights. Torch's forward mode would take one run of the function, but
    it does part of its work in Python.

    Args:
        outputs: What was computed from the inputs, under a graph.
        inputs: Leaves that require gradients.
        directions: How each moves; None for ones.
    """
    moving = [output for output in outputs if output.requires_grad]
    found = {id(output): torch.zeros_like(output) for output in outputs}
    if moving:
        weights = [torch.zeros_like(output).requires_grad_() for output in moving]
        slopes = torch.autograd.grad(
            moving, list(inputs), weights, create_graph=True, allow_unused=True
        )
        pairs = zip(slopes, directions, strict=True)
        along = [
            (slope if direction is None else slope * direction).sum()
            for slope, direction in pairs
            if slope is not None and slope.requires_grad
        ]
        if along:
            each = torch.autograd.grad(along, weights, allow_unused=True)
            for output, derivative in zip(moving, each, strict=True):
                if derivative is not None:
                    found[id(output)] = derivative
    return [found[id(output)].detach() for output in outputs]
