"""What pieces of the data add to the statistics, and the sum of it."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.second_order import SecondOrder
from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.inputs.rows import rows_of
from ember.inference.maximisation.edges import check_edges
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.queries import criteria

__all__ = [
    "Part",
    "PartsAt",
    "Sums",
    "Total",
    "check_second_order",
    "in_template",
    "jittered_start",
]

JITTER = 0.3  # of parameters
MOST = 1_000  # free parameters: as many backward passes for each piece, and the square of it
Sums = Mapping[TieKey, tuple[TiedFactors, Tensor]]


@dataclass(frozen=True, eq=False)
class Part:
    """What some pieces add to the statistics.

    Attributes:
        rows: How many rows they have.
        observations: How many observations these are.
        log_likelihood: Of their rows.
        sums: The sufficient statistics, cell by cell.
        second_order: What sites without any are expected to say.
    """

    rows: int
    observations: float
    log_likelihood: float
    sums: Sums
    second_order: SecondOrder | None = None

    def statistics(self, template: Plan, params: Params, log_prior: float) -> Statistics:
        """The same as statistics of a plan, with its prior."""
        fixed = {name: value.detach() for name, value in params.items()}
        sums, second_order = dict(self.sums), self.second_order
        return Statistics(
            self.log_likelihood,
            log_prior,
            fixed,
            sums,
            (),
            template.prior,
            second_order=second_order,
        )


@dataclass(frozen=True)
class PartsAt:
    """What a piece is asked in an E-step: its part at each of some parameters.

    Attributes:
        points: The parameters.
        maximum: Whether the latents take their most probable joint value.
        curved: Whether to ask sites without sufficient statistics for their curvature too.
    """

    points: Sequence[Params]
    maximum: bool = False
    curved: bool = True

    def __call__(self, plan: Plan) -> list[Part]:
        rows, observations = rows_of(plan.structure.arguments), criteria.observations(plan)
        e_step = functools.partial(LogEvidence.of(plan).statistics, maximum=self.maximum)
        found = [e_step(params) for params in self.points]
        return [
            Part(rows, observations, s.log_likelihood, s.sums, _second_order(plan, s, self.curved))
            for s in found
        ]


def _second_order(plan: Plan, statistics: Statistics, curved: bool = True) -> SecondOrder | None:
    """What sites without sufficient statistics are expected to say at the place of an E-step."""
    params = statistics.params
    flat = SecondOrder.flat(plan.opaque, plan.structure.parameters, params)
    if flat is None:
        return None
    return sum((flat.of(posterior, params, curved) for posterior in statistics.opaque), flat)


def check_second_order(template: Plan) -> None:
    """Refuses models of which some sites have neither sufficient statistics nor a curvature.

    Args:
        template: The plan for some rows.

    Raises:
        ValueError: Naming a site.
    """
    names = (*template.opaque.factors, *template.opaque.members)
    if not names:
        return
    name, why = names[0], ""
    start = jittered_start(template)
    flat = SecondOrder.flat(template.opaque, template.structure.parameters, start)
    assert flat is not None
    if len(flat.point) > MOST:
        why = f"it reads {len(flat.point)} free parameters, where at most {MOST} are allowed"
    else:
        try:
            edges = check_edges(template, LogEvidence.of(template).statistics(start))
            why = "its density has edges" if edges else ""
        except RuntimeError:
            why = "its density cannot be differentiated twice"
        except (ValueError, ArithmeticError):
            why = ""  # it has no value there: the passes begin elsewhere
    if why:
        raise ValueError(
            f"site '{name}' has no sufficient statistics, and {why}, so its M-step needs all rows "
            "at once; fit the model with fit(...)."
        )


def jittered_start(template: Plan) -> dict[str, Tensor]:
    """Parameters at which nothing happens to be zero, always the same."""
    start = template.structure.start
    with torch.random.fork_rng(devices=[]):  # what the fit draws is its own affair
        torch.manual_seed(0)
        return Coordinates(template.structure.parameters).jittered(start, JITTER)


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
            self._sum = dataclasses.replace(each, log_likelihood=0.0, sums={}, second_order=None)
        none = {
            key: (tied, sums.new_zeros(len(tied.cells), sums.shape[-1]))
            for key, (_, sums) in part.sums.items()
            if key not in self._sum.sums
            for tied in [self._template.tied[key]]
        }
        begun = dataclasses.replace(self._sum, sums={**self._sum.sums, **none})
        self._sum = dataclasses.replace(begun + each, others=())

    @property
    def part(self) -> Part:
        """The sum so far."""
        if self._sum is None:
            return Part(0, 0.0, 0.0, {})
        found = self._sum
        return Part(
            self._rows, self._observations, found.log_likelihood, found.sums, found.second_order
        )


def in_template(template: Plan, parts: Iterable[Part]) -> Part:
    """The sum of parts, in the cells and about the references of a template."""
    total = Total(template)
    for part in parts:
        total.add(part)
    return total.part
