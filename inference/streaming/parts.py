"""What pieces of the data add to the statistics, and the sum of it."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.inputs.rows import rows_of
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.queries import criteria

__all__ = ["Part", "PartsAt", "Total", "in_template"]

Sums = Mapping[TieKey, tuple[TiedFactors, Tensor]]


@dataclass(frozen=True, eq=False)
class Part:
    """What some pieces add to the statistics.

    Attributes:
        rows: How many rows they have.
        observations: How many observations these are.
        log_likelihood: Of their rows.
        sums: The sufficient statistics, cell by cell.
    """

    rows: int
    observations: float
    log_likelihood: float
    sums: Sums

    def statistics(self, template: Plan, params: Params, log_prior: float) -> Statistics:
        """The same as statistics of a plan, with its prior."""
        fixed = {name: value.detach() for name, value in params.items()}
        sums = dict(self.sums)
        return Statistics(self.log_likelihood, log_prior, fixed, sums, (), template.prior)


@dataclass(frozen=True)
class PartsAt:
    """What a piece is asked in an E-step: its part at each of some parameters.

    Attributes:
        points: The parameters.
        maximum: Whether the latents take their most probable joint value.
    """

    points: Sequence[Params]
    maximum: bool = False

    def __call__(self, plan: Plan) -> list[Part]:
        rows, observations = rows_of(plan.structure.arguments), criteria.observations(plan)
        e_step = functools.partial(LogEvidence.of(plan).statistics, maximum=self.maximum)
        found = [e_step(params) for params in self.points]
        return [Part(rows, observations, each.log_likelihood, each.sums) for each in found]


class Total:
    """A sum of parts, in the cells and about the references of a template.

    Args:
        template: The plan for some rows.
    """

    def __init__(self, template: Plan) -> None:
        self._template = template
        self._rows, self._observations = 0, 0.0
        self._sum: Statistics | None = None

    def add(self, part: Part) -> None:
        """Adds what further pieces have."""
        self._rows += part.rows
        self._observations += part.observations
        each = part.statistics(self._template, {}, 0.0)
        if self._sum is None:
            none = {
                key: (tied, sums.new_zeros(len(tied.cells), sums.shape[-1]))
                for key, (_, sums) in part.sums.items()
                for tied in [self._template.tied[key]]
            }
            self._sum = dataclasses.replace(each, log_likelihood=0.0, sums=none)
        self._sum = dataclasses.replace(self._sum + each, others=())

    @property
    def part(self) -> Part:
        """The sum so far."""
        if self._sum is None:
            return Part(0, 0.0, 0.0, {})
        found = self._sum
        return Part(self._rows, self._observations, found.log_likelihood, found.sums)


def in_template(template: Plan, parts: Iterable[Part]) -> Part:
    """The sum of parts, in the cells and about the references of a template."""
    total = Total(template)
    for part in parts:
        total.add(part)
    return total.part
