r"""The last steps of a stochastic search, and what error the draws leave.

Many draws at one place give the score and, by Louis' formula, the observed information: a Newton
step from there. The score is zero at the optimum but for the error of the draws, whose variance
:math:`V` is that of the means of batches of draws, so that of the estimate is
:math:`I^{-1} V I^{-1}`. While its root exceeds a tenth of the standard error of some parameter,
twice as many draws are made at the place reached.

Reference: Louis (1982), *Finding the observed information matrix when using the EM algorithm*, JRSS
B 44, 226-233.
"""

import dataclasses

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.run import MonteCarloErrors, Run
from ember.inference.iteration.stochastic.chains import Chains, statistics_of_draws
from ember.inference.iteration.stochastic.saem import approximated
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.maximisation.information import Information
from ember.inference.numerics.forward_derivative import jacobian
from ember.inference.numerics.monte_carlo import MonteCarlo
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Params, Plan

__all__ = ["by_draws", "rule_of_draws"]


ENOUGH = 0.1  # of a standard error: the Monte Carlo error that a fit may leave
BATCHES = 10
SETTLING = 20  # jumps before the first draw is kept
NEAR = 0.5  # standard errors: a Newton step of that length leaves a quarter of its square
LONGEST = 10.0  # complete-data standard errors of a step
STEPS = 12  # Newton steps at most before the draws are doubled
LEAST = 1e-3  # eigenvalue of the observed information relative to the complete one
KEPT = 400, 1_000_000  # draws of each unit that are kept at most, or numbers of all rows then


def rule_of_draws(plan: Plan) -> MonteCarlo | None:
    """The wish for a search by draws, if a latent has one.

    Raises:
        ValueError: If the model has latents of other kinds as well.
    """
    rules = [c.monte_carlo for c in plan.units if c.monte_carlo is not None]
    if not rules:
        return None
    name = next(n for c in plan.units if c.monte_carlo is not None for n in c.latents)
    others = [*plan.structure.latent, *plan.structure.gaussian, *plan.structure.conjugate]
    others += [n for c in plan.units if c.monte_carlo is None for n in c.latents]
    if others or plan.has_gaps:
        other = f"the latent '{others[0]}'" if others else "rows that are observed in part"
        raise ValueError(
            f"site '{name}' asks to be integrated by Monte Carlo, but the model has {other} too; "
            f"integrate '{name}' by 'quadrature', or estimate one as a parameter "
            f"(integrate={{'{name}': None}})."
        )
    return rules[0]


def by_draws(plan: Plan, way: Trajectory, rule: MonteCarlo, method: str) -> Run:
    """The fit by draws from one start.

    Args:
        plan: The plan.
        way: Where to start; it grows.
        rule: How many draws.
        method: How the fit calls itself.
    """
    evidence, params = LogEvidence.of(plan), dict(way.params)
    way.begin(evidence.statistics(params).objective)
    chains = [Chains.at(plan, component, params, rule.chains) for component in plan.units]
    params = approximated(plan, params, chains, rule)
    count, steps, stop = rule.draws, 0, StopReason.FEW_DRAWS
    while stop is not StopReason.DRAWN:
        params, errors, length = _polished(plan, params, rule.chains, count)
        way.evaluations, steps = way.evaluations + count, steps + 1
        if length > NEAR and steps < STEPS:
            continue  # a long step leads near the optimum, and not yet there
        if errors is not None and errors.share <= ENOUGH and length <= NEAR:
            stop = StopReason.DRAWN
        elif 2 * count > rule.most:
            break
        count *= 2
    final = evidence.statistics(params)
    way.take(final.params, final.objective, None)
    way.evaluations += rule.burn_in + rule.averaged
    warning = "" if stop is StopReason.DRAWN else f"{method}: {stop.value}"
    run = Run.at_end(way, final, plan, method, stop)
    return dataclasses.replace(run, warning=warning, monte_carlo=errors)


def _polished(
    plan: Plan, params: Params, chains: int, count: int
) -> tuple[dict[str, Tensor], MonteCarloErrors | None, float]:
    """A Newton step on many draws.

    Returns:
        The parameters, the error that the draws leave if it is known, and the length of the step in
        standard errors.
    """
    coordinates = Coordinates(plan.structure.parameters)
    draws = _drawn(plan, params, chains, count)
    found = Information.at(coordinates, statistics_of_draws(plan, params, draws))
    step = None if found is None else found.ascent(LEAST)
    inverse = None if found is None else found.inverse()
    if found is None or step is None:
        return dict(params), None, 0.0
    length = float((step @ found.complete @ step).sqrt())
    if length > LONGEST:
        step = step * (LONGEST / length)
    if inverse is None:
        moved = coordinates.unflatten(found.point + step)
        return {n: v.detach() for n, v in moved.items()}, None, max(length, 2.0 * NEAR)
    batches = found.by_node.reshape(len(found.point), BATCHES, -1).sum(2) * BATCHES
    noise = batches - batches.mean(1, keepdim=True)
    variance = noise @ noise.mT / (BATCHES * (BATCHES - 1))
    moved = {n: v.detach() for n, v in coordinates.unflatten(found.point + step).items()}
    errors = _errors(coordinates, found.point + step, inverse @ variance @ inverse)
    usual = _errors(coordinates, found.point + step, inverse)
    share = max(
        float((errors[n] / usual[n].clamp_min(1e-300)).nan_to_num(nan=0.0).max()) for n in errors
    )
    length = float((step @ found.observed @ step).clamp_min(0.0).sqrt())
    return moved, MonteCarloErrors(errors, share, chains * count), length


def _errors(coordinates: Coordinates, point: Tensor, covariance: Tensor) -> dict[str, Tensor]:
    """The root of the variance of every entry of every parameter, by the delta method."""
    out = {}
    for name in coordinates.slices():

        def value(free: Tensor, name: str = name) -> Tensor:
            return coordinates.unflatten(free)[name]

        slope = jacobian(value, point)
        flat = slope.reshape(-1, len(point))
        variance = torch.einsum("ip,pq,iq->i", flat, covariance, flat)
        out[name] = variance.clamp_min(0.0).sqrt().reshape(slope.shape[:-1])
    return out


def _drawn(plan: Plan, params: Params, chains: int, count: int) -> dict[str, Tensor]:
    """Draws ``(Q, G, D)`` of each component, in the order in which they were made."""
    running = [Chains.at(plan, component, params, chains) for component in plan.units]
    rows = max(component.playback.size for component in plan.units)
    thin = max(1, count * chains // max(KEPT[0], KEPT[1] // rows))
    kept: dict[str, list[Tensor]] = {each.component.factor.name: [] for each in running}
    for k in range(SETTLING + count):
        for each in running:
            each.jump(plan, params)
            if k >= SETTLING and (k - SETTLING) % thin == thin - 1:
                kept[each.component.factor.name].append(each.line)
    out = {}
    for name, lines in kept.items():
        whole = len(lines) // BATCHES * BATCHES  # batches of as many draws
        out[name] = torch.cat(lines[len(lines) - whole :])
    return out
