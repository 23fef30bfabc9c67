"""What a numerical search asks for, written down once and played back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ember.inference.maximisation.numerical import Search, along, derivatives_along
from ember.inference.maximisation.parameter_plan import ParameterPlan
from ember.inference.numerics import newton
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.of_statistics import OfStatistics, Reads
from ember.inference.plan.statistics import Statistics

__all__ = ["ReplayedSearches"]


class ReplayedSearches:
    """Makes the searches of one plan, which share what was written down.

    Args:
        reads: What the plan's statistics read; None if nothing can be played back.
    """

    def __init__(self, reads: Reads | None) -> None:
        self._reads = reads
        self._functions: dict[tuple[str, ...], _Functions] = {}

    def __call__(
        self,
        plan: ParameterPlan,
        names: list[str],
        statistics: Statistics,
        params: dict[str, Tensor],
    ) -> Search:
        """The search for some parameters."""
        if self._reads is None:
            return Search(plan, names, statistics, params)
        key = tuple(names)
        if key not in self._functions:
            coordinates = Coordinates({name: plan.parameters[name] for name in names})
            self._functions[key] = _Functions(coordinates, self._reads)
        return _ReplayedSearch(self._functions[key], plan, names, statistics, params)


class _Functions:
    """The negative expected log joint along a way, and its derivatives."""

    def __init__(self, coordinates: Coordinates, reads: Reads) -> None:
        function: Callable[..., Tensor] = partial(along, coordinates)
        self._function, self._reads = function, reads
        self.value = OfStatistics(lambda s, way, *line: [function(s, *line, way)], reads)
        self.slope = OfStatistics(
            lambda s, way, *line: newton.slope(lambda at: function(s, *line, at), way), reads
        )
        self.derivatives = OfStatistics(
            lambda s, way, start, along: derivatives_along(coordinates, s, start, along, way),
            reads,
        )
        self._of_blocks: OfStatistics | None = None

    def block_derivatives(self, places: Tensor, inside: Tensor) -> OfStatistics:
        """The same in blocks, which are those of the plan: the first that are asked for stay."""
        if self._of_blocks is None:
            function = self._function
            self._of_blocks = OfStatistics(
                lambda s, way, *line: newton.block_derivatives(
                    lambda at: function(s, *line, at), way, places, inside
                ),
                self._reads,
            )
        return self._of_blocks


class _ReplayedSearch(Search):
    """The function of a search; where the way leaves the support it is the plain one's to say."""

    def __init__(
        self,
        functions: _Functions,
        plan: ParameterPlan,
        names: list[str],
        statistics: Statistics,
        params: dict[str, Tensor],
    ) -> None:
        self._functions = functions
        super().__init__(plan, names, statistics, params)

    def __call__(self, way: Tensor) -> Tensor:
        if torch.is_grad_enabled() and way.requires_grad:
            return super().__call__(way)
        try:
            (value,) = self._functions.value(self._here, way, self._start, self._along)
        except ValueError:
            return super().__call__(way)
        return value

    def value_and_slope(self, at: Tensor) -> tuple[float, Tensor]:
        """See ``newton``."""
        try:
            value, gradient = self._functions.slope(self._here, at, self._start, self._along)
        except ValueError:
            value, gradient = super().__call__(at), torch.zeros_like(at)
        return float(value), gradient

    def derivatives(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """See ``newton``."""
        quick = self._functions.derivatives
        try:
            gradient, hessian = quick(self._here, at, self._start, self._along)
        except ValueError:  # rounding has taken a value to the edge of its prior's support
            return newton.derivatives(super().__call__, at)
        return gradient, hessian

    def block_derivatives(
        self, at: Tensor, places: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See ``newton``."""
        quick = self._functions.block_derivatives(places, inside)
        try:
            gradient, hessian = quick(self._here, at, self._start, self._along)
        except ValueError:
            return newton.block_derivatives(super().__call__, at, places, inside)
        return gradient, hessian
