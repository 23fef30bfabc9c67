"""How sure estimates are, where the method has drawn from a posterior of the parameters."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ember.inference.parameters.parameter import by_site, entry_labels
from ember.inference.plan.plan import Params, Plan
from ember.inference.queries.deterministic import deterministic_values
from ember.inference.queries.uncertainty.intervals import Interval

__all__ = ["DrawnUncertainty", "deviation"]


COMPUTED = 400  # draws at which the model is run for what it computes


class DrawnUncertainty:
    """The spread of draws; as ``Uncertainty``, which is for points.

    Args:
        plan: The plan of model and data.
        params: The estimates; of their sites the draws count.
        draws: Site to ``(n, *shape)``.
        exact: Standard deviations that are known without draws, by site.

    Attributes:
        notes: Nothing.
        labels: The name of each entry of the parameters, and of what is computed from them.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        plan: Plan,
        params: Params,
        draws: Mapping[str, Tensor],
        exact: Mapping[str, Tensor],
    ) -> None:
        self._draws = {name: draws[name] for name in params}
        every = {**self._draws, **_computed(plan, self._draws)}
        self._shapes = {name: value.shape[1:] for name, value in every.items()}
        self.labels = entry_labels(self._shapes)
        self._exact = exact
        self._entries = [
            column
            for value in every.values()
            for column in value.reshape(len(value), -1).double().unbind(1)
        ]

    def by_site(self, flat: Tensor) -> dict[str, Tensor]:
        """One number for each entry, in the shapes of the sites."""
        return by_site(flat, self._shapes)

    def standard_errors(self, robust: bool = False) -> Tensor:
        """The standard deviation of each entry, ``(E,)``."""
        _check(robust)
        found = self.by_site(_stacked([deviation(column) for column in self._entries]))
        every = [self._exact.get(name, value).reshape(-1) for name, value in found.items()]
        return torch.cat(every) if every else torch.zeros(0, dtype=torch.float64)

    def intervals(self, level: float, robust: bool = False) -> Interval:
        """Between two quantiles of each entry, with as much beyond the one as beyond the other."""
        _check(robust)
        ends = (0.5 - 0.5 * level, 0.5 + 0.5 * level)
        low, high = (_stacked([column.quantile(end) for column in self._entries]) for end in ends)
        points = low == high  # of which nothing is said
        return Interval(*(torch.where(points, torch.nan, end) for end in (low, high)))

    def vcov(self, robust: bool = False) -> Tensor:
        """The covariance of all entries; NaN for points, and those computed at fewer draws."""
        _check(robust)
        count = max((len(column) for column in self._entries), default=0)
        if count < 2:
            return torch.full((len(self._entries), len(self._entries)), torch.nan).double()
        whole = [
            column if len(column) == count else column.new_full((count,), torch.nan)
            for column in self._entries
        ]
        found = torch.stack(whole).cov().reshape(len(whole), len(whole))
        points = torch.tensor([bool((column == column[0]).all()) for column in self._entries])
        return torch.where(points | points.unsqueeze(-1), torch.nan, found)

    def errors_of(self, function: Callable[[Params], Tensor]) -> Tensor:
        """Standard deviations of numbers ``(F,)`` that follow from the parameters."""
        found = [function({n: v[i] for n, v in self._draws.items()}) for i in _some(self._draws)]
        return deviation(torch.stack(found))

    def draws(self, n: int) -> dict[str, Tensor]:
        """Some of the draws, picked at random."""
        total = len(next(iter(self._draws.values())))
        picked = torch.randint(total, (n,))
        return {name: value[picked] for name, value in self._draws.items()}


def deviation(draws: Tensor) -> Tensor:
    """The standard deviation over draws ``(n, ...)``; NaN of a single one, and of a point.

    What is the same in all draws is an estimate without a posterior, of which nothing is known.
    """
    if len(draws) < 2:
        return torch.full_like(draws[0], torch.nan)
    found = draws.std(0)
    return torch.where((draws == draws[0]).all(0), torch.nan, found)


def _computed(plan: Plan, draws: Params) -> dict[str, Tensor]:
    """What the model computes at some of the draws."""
    first = {name: value[0] for name, value in draws.items()}
    if not draws or not deterministic_values(plan.structure, first):
        return {}
    found = [
        deterministic_values(plan.structure, {name: value[i] for name, value in draws.items()})
        for i in _some(draws)
    ]
    return {name: torch.stack([each[name] for each in found]) for name in found[0]}


def _some(draws: Params) -> range:
    """The places of some of the draws."""
    total = len(next(iter(draws.values())))
    return range(0, total, max(total // COMPUTED, 1))


def _stacked(numbers: list[Tensor]) -> Tensor:
    return torch.stack(numbers) if numbers else torch.zeros(0, dtype=torch.float64)


def _check(robust: bool) -> None:
    """Refuses the sandwich.

    Raises:
        ValueError: Always, if it is asked for.
    """
    if robust:
        raise ValueError("robust=True is for estimates that are points; these errors are of draws.")
