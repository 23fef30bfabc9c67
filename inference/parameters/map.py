"""What every map from parameters to an argument of a distribution has in common."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

__all__ = ["ParameterMap"]


class ParameterMap(Protocol):
    """An argument of a distribution as a function of parameters."""

    @property
    def domain(self) -> str:
        """Where the argument's values lie, such as "real" or "simplex"."""
        ...

    @property
    def sources(self) -> tuple[str, ...]:
        """The parameters that it depends on."""
        ...

    @property
    def is_constant(self) -> bool:
        """Whether it depends on none."""
        ...

    def evaluate(self, params: Mapping[str, Tensor]) -> Tensor:
        """The argument at ``params``, broadcast dims of size 1."""
        ...
