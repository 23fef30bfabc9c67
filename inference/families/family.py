r"""Exponential families in natural form: statistics and natural parameters.

A family writes the log density of an event as

.. math:: \log p(x \mid \theta) = \langle \eta(\theta), T(x) \rangle + h(x),

with the log normaliser carried by the statistic that counts observations. Each parameter of a
family is of a kind (``kinds.py``), which says what maximises its share of the expected log
likelihood.

Reference: Barndorff-Nielsen (1978), *Information and Exponential Families*, Wiley.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ember.inference.families.kinds import Kind

__all__ = ["Family", "Values"]


Values = Sequence[Tensor]


class Family(ABC):
    """One exponential family; instances have no state but what their names tell."""

    kinds: ClassVar[tuple[Kind, ...]]
    """The kind of each family parameter, in the order of the family parameters."""

    @property
    def name(self) -> str:
        """Equal for families with the same statistics."""
        return type(self).__name__

    @abstractmethod
    def natural_parameters(self, *values: Tensor) -> Tensor:
        """``eta`` of shape ``(..., P)`` from one tensor per family parameter."""

    @abstractmethod
    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        """The canonical coefficients of one parameter, given statistics ``(C, P)`` and values."""

    def scatter(self, statistics: Tensor) -> list[Tensor] | None:
        """The coefficients of a scale whose location is the reference; None if it has none."""
        return None

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        """Statistics of ``x + by`` from those of ``x``; only families with a location move."""
        return statistics
