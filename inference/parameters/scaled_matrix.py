"""A known matrix times a positive number made from a parameter, as an argument of a normal."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ember.inference.numerics.shapes import append_dims
from ember.inference.parameters.argument_map import ArgumentMap

__all__ = ["ScaledMatrix"]


@dataclass(frozen=True)
class ScaledMatrix:
    """``c(theta) M``: a covariance ``va * A``, a precision ``tau * Q``, a factor ``s * L``.

    Attributes:
        scale: The positive number, over the argument's batch.
        matrix: The known matrix ``(*batch, n, n)``, broadcast dims of size 1; its first entry is
            one.
    """

    scale: ArgumentMap
    matrix: Tensor = field(repr=False)
    domain: str = "matrix"

    @property
    def sources(self) -> tuple[str, ...]:
        return self.scale.sources

    @property
    def is_constant(self) -> bool:
        return self.scale.is_constant

    def evaluate(self, params: Mapping[str, Tensor]) -> Tensor:
        """The argument at ``params``, broadcast dims of size 1."""
        return append_dims(self.scale.evaluate(params), 2) * self.matrix
