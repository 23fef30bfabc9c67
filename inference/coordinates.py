"""Parameters as one vector of free reals, in which a straight line stays inside every support."""

from collections.abc import Container, Mapping

import torch
from torch import Tensor
from torch.distributions import transform_to

from ember.inference.statistics import Statistics
from ember.inference.structure import Parameter

__all__ = ["Coordinates"]


class Coordinates:
    """Flattens constrained parameters to an unconstrained vector, and back.

    Simplices pass through log-ratios, positive numbers through the logarithm, probabilities
    through the logit, positive-definite matrices through the log-Cholesky factor.

    Args:
        parameters: The parameters, in their order.
        roots: Those non-negative parameters that pass through the square root instead. Where many
            entries end at zero, as in an image, their logarithms would run away for ever; roots
            come to rest.
    """

    def __init__(self, parameters: Mapping[str, Parameter], roots: Container[str] = ()) -> None:
        self._parameters = list(parameters.values())
        self._roots = {name for name in parameters if name in roots}
        self._shapes = [
            torch.Size(transform_to(p.support).inverse_shape(p.shape)) for p in self._parameters
        ]

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """The unconstrained vector; infinite where a parameter lies on its boundary."""
        return torch.cat([self._free(p, params[p.name]).reshape(-1) for p in self._parameters])

    def _free(self, parameter: Parameter, value: Tensor) -> Tensor:
        if parameter.name in self._roots:
            return value.sqrt()
        return parameter.to_unconstrained(value)

    def _constrained(self, parameter: Parameter, free: Tensor) -> Tensor:
        if parameter.name in self._roots:
            return free.square()
        return parameter.to_constrained(free)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Constrained parameters."""
        pieces = vector.split([shape.numel() for shape in self._shapes])
        return {
            p.name: self._constrained(p, piece.reshape(shape)).expand(p.shape)
            for p, piece, shape in zip(self._parameters, pieces, self._shapes, strict=True)
        }

    def jittered(self, params: Mapping[str, Tensor], by: float = 0.01) -> dict[str, Tensor]:
        """Parameters with a little noise, relative to the size of each coordinate."""
        flat = self.flatten(params)
        noisy = flat + by * flat.abs().clamp_min(by) * torch.randn(flat.shape)
        return self.unflatten(torch.where(torch.isfinite(flat), noisy, flat))

    def gradient(self, statistics: Statistics) -> Tensor:
        """The gradient of the objective at ``statistics.params``, by Fisher's identity."""
        with torch.enable_grad():
            free = self.flatten(statistics.params).requires_grad_()
            params = self.unflatten(free)
            value = statistics.plan.expected_log_joint(statistics, params)
            (gradient,) = torch.autograd.grad(value, free)
        if not self._roots:
            return gradient
        # A root of zero is where the square is flat, whatever the (infinite) slope of a logarithm.
        return torch.where(gradient.isnan() & (free == 0.0), 0.0, gradient).detach()

    @staticmethod
    def distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
        """The largest relative change of an entry, entries near zero measured by their site's."""
        largest = 0.0
        for name, value in left.items():
            if not value.numel():
                continue
            size = torch.maximum(value.abs(), right[name].abs())
            scale = size + 0.01 * size.max() + torch.finfo(value.dtype).tiny
            largest = max(largest, float(((right[name] - value).abs() / scale).max()))
        return largest
