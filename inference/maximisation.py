"""The M-step: a closed form for every parameter that has one, a numerical search for the others.

Closed forms are taken one parameter at a time, locations first, each given the newest values of
the others (ECM; Meng & Rubin 1993, Biometrika 80, 267-278). For conjugate pairs such as
Normal-Wishart this order makes the joint mode exact. All remaining parameters are then moved
together by Newton or L-BFGS on the expected log joint, in unconstrained space. Among them are those
of which the closed form lies outside their support, such as a location in an interval; inside it is
the maximiser within the support as well. No step lowers that expected log joint, so the objective
never falls.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import scipy.optimize
import torch
from torch import Tensor

from ember.inference import newton
from ember.inference.conditioning import directions
from ember.inference.conjugacy import pseudo_statistics
from ember.inference.coordinates import Coordinates
from ember.inference.degeneracy import Judged, check_maximiser, check_scales
from ember.inference.families import contribution_to_maximiser
from ember.inference.jacobians import pseudo_jacobian, stays_closed
from ember.inference.least_squares import solve_coefficients
from ember.inference.plan import Plan
from ember.inference.reading.roles import Parameter
from ember.inference.shapes import append_dims
from ember.inference.slots import Slot
from ember.inference.statistics import Group, Statistics
from ember.inference.superposition import Superposed, SuperposedRate
from ember.inference.supports import all_within, is_natural, shown

__all__ = ["IN_SUPPORT", "Update", "maximise", "updates"]

EVENT_DIM = {"sticks": 1, "simplex": 1, "vector": 1, "matrix": 2}
IN_SUPPORT = "closed form in support"
CLOSED = ("closed form", IN_SUPPORT)
LEVEL = 1e-13  # change of a function, relative, that is rounding


@dataclass(frozen=True)
class Usage:
    """One slot that a parameter feeds: in the likelihood's groups or in another site's prior."""

    where: tuple[Any, ...]
    prior: str | None
    slot: int
    start: int


@dataclass(frozen=True)
class Update:
    """How the M-step moves one parameter: in closed form, numerically, or not at all.

    ``how`` is "closed form", "numerical", "fixed", or "closed form in support": numerical where
    the closed form would leave the support that the model declares.
    """

    name: str
    how: str
    reason: str
    kind: str = ""
    link: str = ""
    usages: tuple[Usage, ...] = ()
    together: tuple[str, ...] = ()


def maximise(plan: Plan, statistics: Statistics) -> dict[str, Tensor]:
    """Parameters that raise the expected log joint as far as each update can.

    Raises:
        Degenerate: If a component has collapsed or emptied.
    """
    params = dict(statistics.params)
    todo = updates(plan)
    numeric = [update.name for update in todo if update.how == "numerical"]
    with torch.no_grad():
        for update in todo:
            if update.how not in CLOSED:
                continue
            if update.kind == "coefficients":
                found = _coefficients(plan, update, statistics, params)
            else:
                found = {update.name: _closed_form(plan, update, statistics, params)}
            if update.how == IN_SUPPORT and not all_within(plan.structure.parameters, found):
                numeric += found
            else:
                params.update(found)
    if numeric:
        params = _numerical(plan, numeric, statistics, params)
        check_scales(statistics, params, plan.objective)
    return _below_upper_bounds(plan, params)


def _below_upper_bounds(plan: Plan, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Estimates at the upper bound of a ``Uniform`` prior, moved off it by one rounding.

    Torch counts the lower bound to the support and the upper one not: there the density is zero.
    """
    for name, prior in plan.priors.items():
        density = prior.site.density
        if density is None or not isinstance(density.base, dist.Uniform):
            continue
        bounds: Any = density.distribution(params)
        inside = torch.nextafter(bounds.high, bounds.low).expand_as(params[name])
        params[name] = torch.where(params[name] < bounds.high, params[name], inside)
    return params


def updates(plan: Plan) -> tuple[Update, ...]:
    """The update of every parameter, in the order in which the M-step takes them."""
    cached = plan.notes.get("updates")
    if cached is None:
        found = [_choose(plan, parameter) for parameter in plan.structure.parameters.values()]
        found = _join_coefficients(plan, found)
        found.sort(key=lambda update: update.kind not in ("location", "vector", "coefficients"))
        cached = plan.notes["updates"] = tuple(found)
    return cached


def _join_coefficients(plan: Plan, found: list[Update]) -> list[Update]:
    """Joins the updates of coefficients that share a linear predictor; all or none is closed."""
    by_name = {update.name: update for update in found}
    blocks: list[set[str]] = []
    for update in found:
        if update.kind == "coefficients":
            names = {s for u in update.usages for s in _group(plan, u).slots[u.slot].sources}
            touching = [block for block in blocks if block & names]
            blocks = [block for block in blocks if not block & names]
            blocks.append(names.union(*touching))
    for block in blocks:
        other = [n for n in sorted(block) if by_name[n].kind != "coefficients"]
        for name in block:
            update = by_name[name]
            if other and update.kind == "coefficients":
                reason = f"shares a weighted sum with '{other[0]}', which has no closed form"
                by_name[name] = Update(name, "numerical", reason)
            elif not other:
                members = tuple(n for n in by_name if n in block)
                by_name[name] = dataclasses.replace(update, together=members)
    return list(by_name.values())


def _choose(plan: Plan, parameter: Parameter) -> Update:
    name = parameter.name
    usages = tuple(_usages(plan, name))
    opaque = [site for site in plan.opaque_sites() if name in plan.dependencies(site)]
    if opaque:
        reason = plan.site(opaque[0]).reason
        return Update(name, "numerical", f"site '{opaque[0]}': {reason}")
    if not usages:
        if plan.objective == "mle" or not parameter.has_prior:
            return Update(name, "fixed", "does not enter the likelihood")
        return Update(name, "numerical", "enters no factor but its own prior")
    slots = [_group(plan, usage).slots[usage.slot] for usage in usages]
    first = slots[0]
    on = first.table.on if first.table else ""
    if any(_way(slot) != _way(first) for slot in slots):
        return Update(name, "numerical", "it enters two sites in ways that do not combine")
    if len({(usage.where, usage.prior) for usage in usages}) < len(usages):
        return Update(name, "numerical", "it feeds two arguments of one site")
    link = _link(first.kind, first.link, first.exponent, on)
    sites = plan.factor_and_prior_names()
    fed = sorted({argument for site in sites for argument in _arguments(plan, site, name)})
    prior = plan.priors.get(name)
    if prior is not None and not _is_conjugate(plan, name, first.kind, link):
        family = type(prior.site.density.base).__name__ if prior.site.density else "its prior"
        return Update(name, "numerical", f"{family} prior is not conjugate to {', '.join(fed)}")
    reason = f"conjugate: {', '.join(fed)}" if prior else f"exponential family: {', '.join(fed)}"
    if prior is not None and prior.site.density is not None:
        reason += f" with {type(prior.site.density.base).__name__} prior"
    if prior is not None and plan.notes.get("unconstrained"):
        if not stays_closed(first.kind, link, parameter.support):
            return Update(name, "numerical", f"the Jacobian of {shown(parameter.support)}")
        reason += ", times the Jacobian" if pseudo_jacobian(first.kind, link) else ""
    if is_natural(first.kind, link, parameter.support):
        return Update(name, "closed form", reason, first.kind, link, usages)
    reason += f"; numerical where it leaves the support {shown(parameter.support)}"
    return Update(name, IN_SUPPORT, reason, first.kind, link, usages)


def _arguments(plan: Plan, site: str, name: str) -> list[str]:
    """The arguments of a site's distribution that a parameter feeds, for the table."""
    density = plan.site(site).density
    if density is None:
        return []
    family = type(density.base).__name__
    return [
        f"{family}.{arg}{' (superposition)' if isinstance(found, SuperposedRate) else ''}"
        for arg, found in density.maps.values()
        if name in found.sources
    ]


def _usages(plan: Plan, name: str) -> list[Usage]:
    groups: list[tuple[tuple[Any, ...], str | None, Group]] = [
        (key, None, group) for key, group in plan.groups.items()
    ]
    groups += [((n,), n, prior.group) for n, prior in plan.priors.items() if prior.group]
    found = []
    for where, prior, group in groups:
        for i, slot in enumerate(group.slots):
            if name in slot.sources:
                assert slot.table is not None
                start = 0
                for source in slot.sources:
                    if source == name:
                        break
                    shape = plan.structure.parameters[source].shape
                    start += shape[: len(shape) - slot.table.event_dim].numel()
                found.append(Usage(where, prior, i, start))
    return found


def _group(plan: Plan, usage: Usage) -> Group:
    if usage.prior is None:
        return plan.groups[usage.where]
    group = plan.priors[usage.prior].group
    assert group is not None
    return group


def _way(slot: Slot) -> tuple[str, str, float]:
    """What slots have in common whose coefficients add up."""
    is_itself = slot.link == "exp" and slot.table is not None and slot.table.on == "log"
    link = "identity" if is_itself and slot.exponent == 1.0 else slot.link
    return slot.kind, link, slot.exponent


def _link(kind: str, link: str, exponent: float, on: str) -> str:
    if kind == "rate" and link == "identity":
        return "power 1"
    if link == "exp":
        return f"power {exponent:g}" if on == "log" else "exp"
    return "softmax" if on == "softmax" else link


def _is_conjugate(plan: Plan, name: str, kind: str, link: str) -> bool:
    site = plan.priors[name].site
    if site.density is None:
        return False
    start = {n: p.start for n, p in plan.structure.parameters.items()}
    found = pseudo_statistics(kind, link, site.density.distribution(start))
    if plan.notes.get("unconstrained") and found == [] and pseudo_jacobian(kind, link):
        return False  # a flat prior has no coefficients to which the Jacobian could add
    return found is not None


def _closed_form(
    plan: Plan, update: Update, statistics: Statistics, params: Mapping[str, Tensor]
) -> Tensor:
    """Sum the slot's coefficients over all sites it feeds, add the prior's, and maximise.

    Of a location it is the step from its present value that is found, which loses no digits to the
    distance from zero.
    """
    shape = plan.structure.parameters[update.name].shape
    rows_shape = shape[: len(shape) - EVENT_DIM.get(update.kind, 0)]
    origin = params[update.name] if update.kind in ("location", "vector") else None
    total, floor = _coefficients_of_slot(plan, update, statistics, params, origin)
    for i, pseudo in enumerate(_pseudo(plan, update, params, origin)):
        spread = pseudo.expand(rows_shape + total[i].shape[1:])
        total[i] = total[i] + spread.reshape(total[i].shape)
    idle = torch.zeros(())
    if all(isinstance(_group(plan, usage).family, Superposed) for usage in update.usages):
        # An entry that feeds no observation: every value is a maximiser, the present one too.
        idle = (total[0] == 0.0) & (total[1] == 0.0)
        total = [torch.where(idle, 1.0, coefficient) for coefficient in total]
    judged = Judged(
        update.name, update.kind, rows_shape, plan.objective, update.name in plan.priors
    )
    check_maximiser(judged, total, floor)
    best = contribution_to_maximiser(update.kind, total, update.link)
    slot = _group(plan, update.usages[0]).slots[update.usages[0].slot]
    value = best if update.kind == "matrix" else slot.parameter(best)
    value = value.reshape(shape)
    if origin is not None:
        value = origin + value
    if update.kind in ("probability", "sticks", "simplex") and bool(torch.isnan(value).any()):
        # No observation: every value is a maximiser, the present one too.
        value = torch.where(torch.isnan(value), params[update.name], value)
    if bool(idle.any()):
        value = torch.where(idle.reshape(shape), params[update.name], value)
    return value


def _coefficients_of_slot(
    plan: Plan,
    update: Update,
    statistics: Statistics,
    params: Mapping[str, Tensor],
    origin: Tensor | None,
) -> tuple[list[Tensor], Tensor]:
    """The coefficients of every row over all sites, and the least variance that data can tell."""
    shape = plan.structure.parameters[update.name].shape
    event = EVENT_DIM.get(update.kind, 0)
    rows_shape = shape[: len(shape) - event]
    count = rows_shape.numel()
    total: list[Tensor] = []
    floor = torch.zeros((count, *shape[len(shape) - min(event, 1) :]))
    for usage in update.usages:
        group, sums = _sums(plan, usage, statistics, params)
        rows = group.rows(usage.slot, usage.start, count)
        cells, own = rows or (torch.arange(count), torch.arange(count))
        at_cell = None
        if origin is not None:
            at_cell = origin.new_zeros((len(group.cells), *shape[len(rows_shape) :]))
            at_cell[cells] = origin.reshape(count, *shape[len(rows_shape) :])[own]
        coefficients = group.contribution(usage.slot, sums, params, at_cell)
        if rows is not None:
            coefficients = [
                c.new_zeros((count, *c.shape[1:])).index_add_(0, own, c[cells])
                for c in coefficients
            ]
        total = [a + b for a, b in zip(total, coefficients, strict=True)] if total else coefficients
        if usage.slot == 1 and (least := group.resolution()) is not None:
            index = own.reshape(-1, *(1,) * (floor.dim() - 1)).expand(least[cells].shape)
            floor.scatter_reduce_(0, index, least[cells], "amax")
    return total, floor


def _coefficients(
    plan: Plan, update: Update, statistics: Statistics, params: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The joint update of a block of coefficients, made when its first member is due."""
    if update.name != update.together[0]:
        return {}
    usages: dict[tuple[Any, ...], Usage] = {}
    for other in updates(plan):
        if other.name in update.together:
            usages.update({(u.where, u.prior, u.slot): u for u in other.usages})
    pooled = []
    for usage in usages.values():
        group, sums = _sums(plan, usage, statistics, params)
        pooled.append((group, usage.slot, sums))
    return solve_coefficients(plan, update.together, pooled, params)


def _sums(
    plan: Plan, usage: Usage, statistics: Statistics, params: Mapping[str, Tensor]
) -> tuple[Group, Tensor]:
    if usage.prior is None:
        return statistics.groups[usage.where]
    return plan.prior_statistics(usage.prior, params)


def _pseudo(
    plan: Plan, update: Update, params: Mapping[str, Tensor], origin: Tensor | None
) -> list[Tensor]:
    prior = plan.priors.get(update.name)
    if prior is None or prior.site.density is None:
        return []
    own = prior.site.density.distribution(params)
    found = pseudo_statistics(update.kind, update.link, own, origin)
    weight = prior.scale
    if prior.site.mask is not None:
        weight = weight * prior.site.mask
    assert found is not None
    extra = pseudo_jacobian(update.kind, update.link) if plan.notes.get("unconstrained") else []
    extra = extra or [0.0] * len(found)
    if not weight.dim():
        return [weight * pseudo + more for pseudo, more in zip(found, extra, strict=True)]
    shape = plan.structure.parameters[update.name].shape
    # The prior of each stick is a site's entry of its own, with a weight of its own.
    lead = len(shape) - (0 if update.kind == "sticks" else EVENT_DIM.get(update.kind, 0))
    full = weight.expand(shape[:lead])
    return [
        append_dims(full, max(pseudo.dim() - lead, 0)) * pseudo + more
        for pseudo, more in zip(found, extra, strict=True)
    ]


def _numerical(
    plan: Plan, names: list[str], statistics: Statistics, params: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Newton or L-BFGS on the expected log joint over the named parameters, the others fixed.

    The search is for the way from the present parameters, along well-conditioned directions.
    """
    coordinates = Coordinates({name: plan.structure.parameters[name] for name in names})

    start = coordinates.flatten(params).detach().nan_to_num(posinf=50.0, neginf=-50.0)
    directed, unseen = directions(plan, names, coordinates)
    directed = directed.to(start)
    along = directed

    def objective(way: Tensor) -> Tensor:
        moved = {**params, **coordinates.unflatten(start + along @ way)}
        try:
            # A flat prior, where that is all a parameter enters, has no gradient but zero.
            return -plan.expected_log_joint(statistics, moved) + 0.0 * way.sum()
        except ValueError:  # rounding has taken a value to the edge of its prior's support
            return way.sum() * 0.0 + torch.inf

    def derivative(free: Tensor) -> tuple[float, Tensor]:
        free = free.detach().requires_grad_()
        value = objective(free)
        (gradient,) = torch.autograd.grad(value, free)
        if not bool(torch.isfinite(value)):
            return float("inf"), torch.zeros_like(gradient)
        if not bool(torch.isfinite(gradient).all()):
            gradient = _differences(objective, free.detach())
        return float(value.detach()), gradient

    still = torch.zeros_like(start)
    if bool(unseen.any()):
        along = torch.where(_left_open(objective, unseen), 0.0, directed)
    before, slope = derivative(still)
    best = None
    if len(start) <= newton.MOST_PARAMETERS and not _asks_the_model(plan, statistics):
        best = newton.minimise(objective, still)
    if best is not None:
        reached = float(objective(best).detach())
    else:
        here = torch.linalg.solve_triangular(directed, start.unsqueeze(-1), upper=True)[:, 0]
        units = coordinates.units(here, slope)

        def negative(x: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, Any]:
            value, gradient = derivative(units * torch.from_numpy(x))
            return value, (units * gradient).numpy()

        found = scipy.optimize.minimize(
            negative, still.numpy(), jac=True, method="L-BFGS-B",
            options={"maxiter": 100, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20},
        )  # fmt: skip
        best, reached = units * torch.from_numpy(np.asarray(found.x)), found.fun
    if not reached < before:
        return params
    with torch.no_grad():
        moved = coordinates.unflatten(start + along @ best)
        for name, value in moved.items():
            if not all_within(plan.structure.parameters, {name: value}):
                # So near to an open edge of the support that rounding took it there.
                moved[name] = torch.nextafter(value, params[name])
    return {**params, **{name: value.detach().clone() for name, value in moved.items()}}


def _left_open(objective: Callable[[Tensor], Tensor], unseen: Tensor) -> Tensor:
    """Which of the directions that no design sees change nothing else either, such as a prior.

    Along them slope and curvature are rounding alone, and their quotient would be any number.
    """
    found = unseen.clone()
    with torch.no_grad():
        value = float(objective(torch.zeros(len(unseen), dtype=torch.float64)))
        for i in unseen.nonzero()[:, 0].tolist():
            step = torch.zeros(len(unseen), dtype=torch.float64).index_fill_(0, torch.tensor(i), 1)
            moved = [float(objective(step)), float(objective(-step))]
            found[i] = all(abs(each - value) <= LEVEL * (1.0 + abs(value)) for each in moved)
    return found


def _differences(objective: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient by central differences, for where automatic differentiation yields NaN.

    A count in a state whose rate is 0 is such a place: the state is impossible, so its term weighs
    nothing, but its derivative is infinity times 0.
    """
    gradient = torch.zeros_like(at)
    with torch.no_grad():
        for i in range(len(at)):
            step = torch.zeros_like(at)
            size = at[i].abs() if bool(at[i].abs() > 0.0) else torch.ones(())
            step[i] = torch.finfo(at.dtype).eps ** (1 / 3) * size
            gradient[i] = (objective(at + step) - objective(at - step)) / (2.0 * step[i])
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _asks_the_model(plan: Plan, statistics: Statistics) -> bool:
    """Whether an evaluation of the expected log joint runs the model, or plays back its tape.

    For either, Newton's many backward passes cost more than the evaluations of L-BFGS.
    """
    pieces = [part.plan.sites[n] for part in statistics.parts for n in part.posteriors]
    return any(s.density is None for s in (*pieces, *(p.site for p in plan.priors.values())))
