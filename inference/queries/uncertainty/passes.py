"""The data of a fit as far as the errors of its estimates ask for them: in memory, or in pieces."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.optimality.nearby import evaluated
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.plan.without_data import PlanWithoutData

__all__ = ["InMemory", "Passes", "passes_of"]

T = TypeVar("T")

GONE = (
    "this takes passes over the data of the fit, which it no longer has: load it with them, "
    "Fit.load(path, model, ...), or go on from its estimates, "
    "EM(model, init=fit.params).fit_batches(loader)."
)


class Passes(Protocol):
    """What may be asked of the data."""

    @property
    def plan(self) -> Plan:
        """Maps and priors; its rows are those of the data, or some of them."""

    @property
    def data(self) -> object:
        """What tells whether the data pay for several threads."""

    @property
    def units(self) -> int:
        """How many independent rows there are (of chains: sequences), 1 if none are."""

    def statistics(self, params: Params) -> Statistics:
        """One E-step."""

    def statistics_at(self, points: Iterable[Params]) -> Iterator[Statistics | None]:
        """An E-step at each of many parameters; None where it cannot be made."""

    def total(self, question: Callable[[Plan], T], add: Callable[[T, T], T]) -> T:
        """What all data answer to a question, of which answers of parts add up."""


@dataclass(frozen=True)
class InMemory:
    """The data of a plan.

    Attributes:
        plan: The plan.
    """

    plan: Plan

    @property
    def data(self) -> object:
        """The arguments of the model."""
        return self.plan.structure.arguments

    @property
    def units(self) -> int:
        """The number of rows."""
        return 1 if self.plan.row is None else self.plan.sizes[self.plan.row]

    def statistics(self, params: Params) -> Statistics:
        """One E-step."""
        return LogEvidence.of(self.plan).statistics(params)

    def statistics_at(self, points: Iterable[Params]) -> Iterator[Statistics | None]:
        """An E-step at each of many parameters, one after the other."""
        return (evaluated(self.statistics, params) for params in points)

    def total(self, question: Callable[[Plan], T], add: Callable[[T, T], T]) -> T:
        """The answer of the plan."""
        return question(self.plan)


def passes_of(plan: Plan) -> Passes:
    """The data that a fit's plan knows of.

    Raises:
        ValueError: If it no longer knows of any.
    """
    if not isinstance(plan, PlanWithoutData):
        return InMemory(plan)
    if plan.passes is None:
        raise ValueError(GONE)
    return cast(Passes, plan.passes)
