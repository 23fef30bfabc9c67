"""What a fit may say of the place where its loop has come to rest.

*Converged* is a claim: the gradient is small against the curvature, there is no direction of ascent
left, and the estimates are at a finite place. Where it does not hold, the loop is sent on
(``higher``), or the reason to stop is another one and names the site (``verdict``).
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ember.inference.iteration.acceleration.em_map import EMMap
from ember.inference.iteration.convergence import Ending, StopReason
from ember.inference.maximisation.objective import score
from ember.inference.optimality.certificate import (
    PRODUCTS,
    Certificate,
    Seen,
    certificate,
    steepest_rise,
)
from ember.inference.optimality.curvature import Curvature
from ember.inference.optimality.higher_places import beyond_edges, climbed, peaks, slid, way_out
from ember.inference.optimality.infinity import at_infinity
from ember.inference.optimality.off_bounds import off_bounds
from ember.inference.optimality.unbounded import collapsed_effects, without_bound
from ember.inference.optimality.vanishing import (
    blurred,
    lost_digits,
    nearer_zero,
    vanished,
    vanished_effects,
)
from ember.inference.parameters.supports import shown
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.queries.coincidence import coinciding
from ember.inference.queries.relabelling import exchangeable

__all__ = ["Judge"]


SUSPECT = (StopReason.UNSETTLED, StopReason.NON_FINITE, StopReason.FAILED)
GAIN = 1e-6  # of a Newton step, relative to the objective, that a converged fit may leave
LITTLE, LEAST = 1e-3, 1e-7  # of that: worth a step of Newton's
SAME, NEARLY_SAME = 1e-6, 1e-3  # differences of log probabilities of states that coincide
KINDS = ("points", "random")  # of starts that may lead above a place where they do
STEPS = 30  # of EM from there


COINCIDENCE = (
    "states {1} and {2} of latent site '{0}' have come to the same estimates: the data (or a "
    "constraint that holds them together) do not tell them apart; use fewer states, or another "
    "start."
)


class _Certified(NamedTuple):
    """What was last found of a place at rest."""

    current: Statistics
    certificate: Certificate
    flattest: Tensor | None


@dataclass
class Judge:
    """Judges the places of one run.

    Attributes:
        plan: The plan of the model.
        em: Its EM map; the objective of a classification has no curvature.
    """

    plan: Plan
    em: EMMap
    _edges: tuple[Statistics, Statistics | None] | None = field(default=None, init=False)
    _curved: tuple[Statistics, Curvature | None] | None = field(default=None, init=False)
    _certified: _Certified | None = field(default=None, init=False)
    _seen: deque[Seen] = field(default_factory=lambda: deque(maxlen=2 * PRODUCTS), init=False)

    def see(self, current: Statistics) -> None:
        """Remembers a place on the way: what its gradient tells of the curvature costs no pass."""
        if not self.plan.components or self.em.classification:
            return
        point = self.em.coordinates.flatten(current.params)
        if len(point) <= PRODUCTS:
            self._seen.append((point, score(current, self.em.coordinates)))

    def higher(self, current: Statistics) -> Statistics | None:
        """A place above the one where the loop has come to rest, if that is no maximum."""
        em = self.em
        above = self.nearer_zero(current)
        if above is not None:
            return above
        above = self._off_bounds(current)
        if above is not None:
            return above
        curvature = self._curvature(current)
        if curvature is None:
            return None
        # Without latents Newton's steps are those of the objective itself: they end at its top.
        little = LITTLE if self.plan.is_incomplete else LEAST
        if curvature.gain > little * _tolerated(current):
            above = climbed(em.e_step, em.coordinates, current, curvature)
            if above is not None:
                return above
        above = self.slid(current)
        if above is not None:
            return above
        if self._is_steep(current, curvature):
            above = self._beyond_edges(current, curvature)
            if above is not None or curvature.gain > _tolerated(current):
                return above
        rise = steepest_rise(em.e_step, em.coordinates, curvature, self._seen)
        self._certified = _Certified(current, certificate(curvature, rise), rise.flattest)
        if rise.direction is not None:
            above = way_out(em.e_step, em.coordinates, current, curvature, rise.direction)
        if above is None and coinciding(self.plan, current.params, SAME):
            above = self._apart(current)
        return above

    def _off_bounds(self, current: Statistics) -> Statistics | None:
        """A place above this one, farther from the bounds that parameters lie on."""
        if self.em.classification:
            return None
        parameters, roots = self.plan.structure.parameters, self.plan.superposed_parameters()
        known = {name: p for name, p in parameters.items() if name not in roots}
        return off_bounds(self.em.e_step, known, current, _tolerated(current))

    def slid(self, current: Statistics) -> Statistics | None:
        """A place noticeably above one where variances of effects have vanished, which stop EM."""
        gone = {} if self.em.classification else vanished_effects(self.plan, current)
        if not any(bool(own.any()) for own in gone.values()):
            return None
        curvature = self._curvature(current)
        if curvature is None:
            return None
        held = torch.zeros_like(curvature.point, dtype=torch.bool)
        for parameter, own in self.em.coordinates:
            if parameter.name in gone:
                held[own] = gone[parameter.name]
        above = slid(self.em.e_step, self.em.coordinates, current, curvature, held)
        if above is None or above.objective <= current.objective + LITTLE * _tolerated(current):
            return None
        return above

    def certificate(self, current: Statistics) -> Certificate | None:
        """Slope and curvature of a place, if it is the last one that was asked for."""
        known = self._certified
        return known.certificate if known and known.current is current else None

    def nearer_zero(self, current: Statistics) -> Statistics | None:
        """A place above this one where variances on their way to zero have come there."""
        if self.em.classification:
            return None
        return nearer_zero(self.plan, self.em.e_step, current, _tolerated(current))

    def vanished(self, current: Statistics) -> str:
        """A sentence that names the variances that are zero in all but name; empty if none is."""
        return vanished(self.plan, self.em.e_step, current, _tolerated(current))

    def blurred(self, before: Statistics, after: Statistics) -> Ending | None:
        """The reason to stay where a step leads into rounding; None if it does not."""
        if self.em.classification:
            return None
        why = blurred(self.plan, self.em.e_step, before, after, _tolerated(before))
        return (StopReason.ROUNDED, why) if why else None

    def _curvature(self, current: Statistics) -> Curvature | None:
        if self.em.classification:
            return None
        if self._curved is None or self._curved[0] is not current:
            try:
                found = Curvature.at(self.em.coordinates, current, missing=self.em.missing)
            except (RuntimeError, ValueError):  # a model without derivatives has no certificate
                found = None
            self._curved = current, found
        return self._curved[1]

    def _is_steep(self, current: Statistics, curvature: Curvature) -> bool:
        """Whether there seems to be more to gain than a fit may leave; at an edge that may be so.

        Of directions without curvature, as Laplace densities have, a Newton step says nothing;
        what counts is what the slope promises for a step as long as the parameters themselves.
        """
        if curvature.gain > _tolerated(current):
            return True
        units = self.em.coordinates.units(curvature.point, curvature.gradient)
        promised = curvature.gradient * units
        return bool((promised.abs() > _tolerated(current))[curvature.flat].any())

    def _beyond_edges(self, current: Statistics, curvature: Curvature) -> Statistics | None:
        """A place noticeably above this one, for a density with edges; looked for once a place."""
        if self._edges is not None and self._edges[0] is current:
            return self._edges[1]
        above = beyond_edges(self.em.e_step, self.em.coordinates, current, curvature)
        if above is not None and above.objective - current.objective <= _tolerated(current):
            above = None
        self._edges = current, above
        return above

    def _apart(self, current: Statistics) -> Statistics | None:
        """A place above one at which states coincide, reached from where they are apart, if any.

        Where they differ in nothing the curvature says nothing: what a chain gains by telling its
        states apart is of third order in their differences.
        """
        em, floor = self.em, current.objective + _tolerated(current)
        for kind in KINDS:
            try:
                statistics = em.e_step(em.start(kind))
                for _ in range(STEPS):
                    statistics = em.e_step(em.m_step(statistics))
            except (RuntimeError, ValueError, ArithmeticError):
                continue
            if statistics.objective > floor:
                return statistics
        return None

    def verdict(self, current: Statistics, reason: StopReason) -> Ending:
        """The reason to stop where nothing higher was found, and a warning if there is one."""
        em = self.em
        if em.classification:
            return reason, ""
        try:
            lost = lost_digits(self.plan, em.e_step, current, _tolerated(current))
            if lost:
                return StopReason.ROUNDED, lost
            stop, warning = self._unsettled(current, reason)
            if stop is reason and not warning:
                warning = self.vanished(current)
            if stop is reason and not warning:
                known = self._certified
                flattest = known.flattest if known and known.current is current else None
                warning, infinite = at_infinity(
                    self.plan, em.e_step, em.coordinates, current, flattest
                )
                stop = StopReason.INFINITE if infinite else reason
        except (RuntimeError, ValueError):
            return reason, ""
        if stop is reason and not warning:
            warning = _coincidence_warning(self.plan, current)
        return stop, warning

    def _unsettled(self, current: Statistics, reason: StopReason) -> Ending:
        """The same reason where the gradient has vanished, another one where it has not."""
        em, curvature, tolerated = self.em, self._curvature(current), _tolerated(current)
        slopes = score(current, em.coordinates, everywhere=True)
        rests = em.coordinates.at_rest(em.coordinates.flatten(current.params))
        if not bool(torch.isfinite(torch.where(rests, 0.0, slopes)).all()):
            stop, why = self.failed(current, StopReason.NON_FINITE, "")
            return (stop, why) if why else (reason, "")
        slides = float(torch.where(rests, slopes, 0.0).abs().nan_to_num().sum()) > tolerated
        if curvature is None or (curvature.gain <= tolerated and not slides):
            return reason, ""
        stop, why = self.failed(current, StopReason.UNSETTLED, "")
        if why or slides or not peaks(em.e_step, em.coordinates, curvature):
            return stop, why
        above = self._beyond_edges(current, curvature)
        return (stop, why) if above is not None else (reason, "")

    def failed(
        self, current: Statistics, reason: StopReason, warning: str, gained: float = 0.0
    ) -> Ending:
        """The reason to stop where an iteration went wrong: perhaps there is no maximum.

        Args:
            current: The place where it was.
            reason: What went wrong.
            warning: The same in words.
            gained: What the objective had gained by the iteration before.
        """
        em = self.em
        if em.classification:
            return reason, warning
        at_rest = gained <= _tolerated(current)
        if reason is StopReason.ROUNDED and at_rest and self.vanished(current):
            return self.verdict(current, StopReason.ROUNDING)
        if reason is StopReason.DECREASED:
            lost = lost_digits(self.plan, em.e_step, current, _tolerated(current))
            if lost:
                return StopReason.ROUNDED, lost
        why = collapsed_effects(self.plan, em.e_step, current)
        if not why and reason in SUSPECT:
            why = without_bound(self.plan, em.e_step, em.coordinates, current)
        return (StopReason.UNBOUNDED, why) if why else (reason, warning)


def _coincidence_warning(plan: Plan, current: Statistics) -> str:
    """A warning about states that coincide though they are no mere names.

    A constraint, such as an order, may have merged them. States that are mere names may well share
    what there is, as where a mixture has more of them than the data.
    """
    if any(shown(p.support).startswith("Interval") for p in plan.structure.parameters.values()):
        return ""  # at a bound that they share, states are alike by the user's own wish
    states = coinciding(plan, current.params, NEARLY_SAME)
    if states is None or exchangeable(plan, states[0], current.params):
        return ""
    return COINCIDENCE.format(*states)


def _tolerated(current: Statistics) -> float:
    return GAIN * (1.0 + abs(current.objective))
