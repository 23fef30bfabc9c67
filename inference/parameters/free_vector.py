"""Parameters as one vector of free reals, one to one: the coordinates of ``biject_to``.

Those of ``coordinates.py`` may move along directions that change no parameter, which a search does
not mind. A density has none: here a simplex of ``K`` probabilities has ``K - 1`` coordinates.
"""

from collections.abc import Mapping

import torch
from torch import Size, Tensor
from torch.distributions import biject_to

from ember.inference.parameters.parameter import Parameter

__all__ = ["FreeVector"]


class FreeVector:
    """The bijection between parameters and a vector.

    Args:
        parameters: The parameters, in their order.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = list(parameters.values())
        self._shapes = [Size(biject_to(p.support).inverse_shape(p.shape)) for p in self._parameters]

    def __len__(self) -> int:
        return sum(shape.numel() for shape in self._shapes)

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """The vector at parameters inside their supports."""
        each = [biject_to(p.support).inv(params[p.name]).reshape(-1) for p in self._parameters]
        return torch.cat(each)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters at a vector, or at many: ``(..., P)``."""
        pieces = vector.split([shape.numel() for shape in self._shapes], -1)
        return {
            p.name: biject_to(p.support)(piece.reshape(vector.shape[:-1] + shape))
            for p, piece, shape in zip(self._parameters, pieces, self._shapes, strict=True)
        }
