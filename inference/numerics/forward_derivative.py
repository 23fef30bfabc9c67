"""Derivatives along a direction, of all of a function's outputs at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["ForwardDerivatives", "forward_derivative", "jacobian"]


class ForwardDerivatives:
    """The derivatives of outputs along any number of directions; exact to rounding.

    Two backward passes: the first is linear in the weights of the outputs, and the second
    differentiates by these weights. Torch's forward mode would take one run of the function, but
    it does part of its work in Python. The first pass serves all directions.

    Args:
        outputs: What was computed from the inputs, under a graph.
        inputs: Leaves that require gradients.
    """

    def __init__(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        self.outputs = list(outputs)
        self.moving = [output for output in outputs if output.requires_grad]
        self.weights = [torch.zeros_like(output).requires_grad_() for output in self.moving]
        self.slopes: Sequence[Tensor | None] = [None] * len(inputs)
        if self.moving:
            with torch.enable_grad():
                self.slopes = torch.autograd.grad(
                    self.moving, list(inputs), self.weights, create_graph=True, allow_unused=True
                )

    def along(self, inputs: Sequence[int], directions: Sequence[Tensor | None]) -> list[Tensor]:
        """The derivative of each output as some inputs move along their directions.

        Args:
            inputs: The numbers of the inputs that move.
            directions: How each moves; None for ones.
        """
        found = {id(output): torch.zeros_like(output) for output in self.outputs}
        moved = [self.slopes[i] for i in inputs]
        with torch.enable_grad():
            along = [
                (slope if direction is None else slope * direction).sum()
                for slope, direction in zip(moved, directions, strict=True)
                if slope is not None and slope.requires_grad
            ]
            if along:
                each = torch.autograd.grad(
                    along, self.weights, allow_unused=True, retain_graph=True
                )
                for output, derivative in zip(self.moving, each, strict=True):
                    if derivative is not None:
                        found[id(output)] = derivative
        return [found[id(output)].detach() for output in self.outputs]


def jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The derivative of a function of a vector ``(P,)`` by each coordinate, ``(*shape, P)``."""
    with torch.enable_grad():
        free = at.detach().clone().requires_grad_()
        derivatives = ForwardDerivatives([function(free)], [free])
    eye = torch.eye(len(at), dtype=at.dtype, device=at.device)
    return torch.stack([derivatives.along([0], [direction])[0] for direction in eye], -1)


def forward_derivative(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], directions: Sequence[Tensor | None]
) -> list[Tensor]:
    """The derivative of each output as the inputs move along their directions; exact to rounding.

    Args:
        outputs: What was computed from the inputs, under a graph.
        inputs: Leaves that require gradients.
        directions: How each moves; None for ones.
    """
    return ForwardDerivatives(outputs, inputs).along(range(len(inputs)), directions)
