"""One EM iteration seen as a map of parameters, and what a scheme of acceleration makes of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, Protocol, Self, TypeVar

from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.expectation.missing_information import MissingInformation
from ember.inference.expectation.replayed import ReplayedEStep, reads_of
from ember.inference.initialisation.starting_params import starting_params
from ember.inference.iteration.trajectory import Movement, Trajectory
from ember.inference.maximisation.expanded import expanded_m_step
from ember.inference.maximisation.information import Missing
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.replayed import ReplayedCoordinates, ReplayedMStep
from ember.inference.optimality.vanishing import off_the_floor
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.supports import all_finite
from ember.inference.plan.loadings import loadings_of
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["EMMap", "Scheme", "State", "above_the_floor"]


Params = dict[str, Tensor]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class EMMap:
    """The two halves of an EM iteration, and the coordinates in which it is a map of vectors.

    Attributes:
        e_step: One pass over the data.
        m_step: The maximiser of what it returns.
        coordinates: The free reals of the parameters.
        start: A place to start from, by its kind (``initialisation/starting_params.py``).
        classification: Whether the E-step takes the latents' most probable joint value. The
            objective has no curvature then.
        plan: The plan, where these are its plain steps: they can be written down.
        missing: The information that the latents hide, where there is a closed form of it.
        sketch: A rough one, of a sample of the rows, where that is worth its time.
        guessed: Keeps parameters that a scheme has guessed where the objective is what it seems.
    """

    e_step: Callable[[Mapping[str, Tensor]], Statistics]
    m_step: Callable[[Statistics], Params]
    coordinates: Coordinates
    start: Callable[[str], Params]
    classification: bool = False
    plan: Plan | None = None
    missing: Missing | None = None
    sketch: Missing | None = None
    guessed: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None

    @classmethod
    def of(cls, plan: Plan, classification: bool = False, expanded: bool = False) -> Self:
        """The map of a plan; ``expanded``, with Gaussian latents stretched in the M-step."""
        parameters = plan.structure.parameters
        loadings = plan.once(loadings_of) if expanded else ()
        expanded = expanded and any(c.stretches is not None for c in plan.components)
        return cls(
            functools.partial(
                LogEvidence.of(plan).statistics, maximum=classification, expanded=expanded
            ),
            # Its updates are chosen in a step.
            above_the_floor(plan, lambda s: expanded_m_step(MStep.of(plan), s, loadings)),
            Coordinates(parameters, plan.superposed_parameters()),
            functools.partial(starting_params, plan, varied=True),
            classification,
            None if classification or expanded or loadings else plan,
            None if classification else plan.once(MissingInformation.of),
            None if classification else plan.once(MissingInformation.sketched),
            functools.partial(off_the_floor, plan) if plan.components else None,
        )

    def replayed(self) -> Self:
        """The same map written down, so that each of many iterations takes less time."""
        if self.plan is None:
            return self
        reads = reads_of(self.plan)
        return dataclasses.replace(
            self,
            e_step=ReplayedEStep.of(self.plan),
            m_step=above_the_floor(self.plan, ReplayedMStep.of(self.plan, reads)),
            coordinates=ReplayedCoordinates.of(self.plan, reads),
        )

    def tried(self, params: Mapping[str, Tensor]) -> Statistics | None:
        """The E-step at parameters that a scheme has guessed; None where they lead nowhere."""
        if not all_finite(params):
            return None
        try:
            return self.e_step(params if self.guessed is None else self.guessed(params))
        except (RuntimeError, ValueError, ArithmeticError):
            return None  # an extrapolated matrix may be all but singular

    def counted(self, way: Trajectory) -> Self:
        """The same map; passes over the data are counted by the trajectory."""

        def counting(function: Callable[P, R]) -> Callable[P, R]:
            def counted(*args: P.args, **kwargs: P.kwargs) -> R:
                way.evaluations += 1
                return function(*args, **kwargs)

            return counted

        return dataclasses.replace(
            self,
            e_step=counting(self.e_step),
            missing=None if self.missing is None else counting(self.missing),
            sketch=None if self.sketch is None else counting(self.sketch),
        )


def above_the_floor(
    plan: Plan, step: Callable[[Statistics], Params]
) -> Callable[[Statistics], Params]:
    """An M-step that leads no variance of effects beneath its floor; what starts there may stay."""
    if not plan.components:
        return step

    def floored(statistics: Statistics) -> Params:
        found, before = step(statistics), statistics.params
        lifted = off_the_floor(plan, found)
        stays = lifted is found or off_the_floor(plan, before) is not before
        return found if stays else dict(lifted)

    return floored


@dataclass(frozen=True)
class State:
    """Where a scheme is; one that has a memory adds it.

    Attributes:
        current: The result of the last E-step.
        length: That of the last EM step, 0 before the first.
    """

    current: Statistics
    length: float = 0.0

    @property
    def is_stuck(self) -> bool:
        """Whether the scheme gets nowhere, and another had better go on."""
        return False

    @property
    def is_quick(self) -> bool:
        """Whether an iteration's time is that of the map's steps."""
        return True


S = TypeVar("S", bound=State)


class Scheme(Protocol[S]):
    """A way to iterate: plain EM, or one that takes longer steps."""

    def init(self, current: Statistics) -> S:
        """The state where an iteration begins."""
        ...

    def step(self, em: EMMap, state: S) -> tuple[S, Movement]:
        """The state after one iteration, and the EM movement seen in it."""
        ...
