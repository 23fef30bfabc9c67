"""Which parameters of a plan have a posterior, and why others stay points."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ember.inference.families.kinds import (
    LOCATION,
    MATRIX,
    PROBABILITY,
    RATE,
    SIMPLEX,
    STICKS,
    VECTOR,
    Kind,
)
from ember.inference.families.links import Link
from ember.inference.maximisation.closed_form import PriorCoefficients
from ember.inference.maximisation.parameter_plan import ParameterPlan
from ember.inference.maximisation.updates import How, Update, tied_factors_of, updates
from ember.inference.parameters.argument_map import row_count
from ember.inference.plan.plan import Plan
from ember.inference.variational_bayes.expected_factors import can_expect
from ember.inference.variational_bayes.given_scale import GivenScale
from ember.inference.variational_bayes.posterior import Posterior, PosteriorOf
from ember.inference.variational_bayes.posteriors import (
    BetaPosterior,
    DirichletPosterior,
    GammaPosterior,
    NormalPosterior,
    VectorPosterior,
    WishartPosterior,
)

__all__ = ["Choice", "as_density", "choose", "prior_coefficients"]


KINDS: dict[Kind, type[PosteriorOf]] = {
    SIMPLEX: DirichletPosterior,
    PROBABILITY: BetaPosterior,
    STICKS: BetaPosterior,
    RATE: GammaPosterior,
    MATRIX: WishartPosterior,
    LOCATION: NormalPosterior,
    VECTOR: VectorPosterior,
}
ALIKE = 1e-9  # relative difference of coefficients that are proportional to a precision


class Choice(NamedTuple):
    """The posteriors by parameter, and for all others the reason why they are points."""

    posteriors: dict[str, Posterior]
    points: dict[str, str]


def choose(plan: Plan) -> Choice:
    """The parameters of a plan that get a posterior."""
    points, candidates = dict[str, str](), dict[str, Update]()
    for update in updates(plan):
        reason = _obstacle(plan, update)
        if reason:
            points[update.name] = reason
        else:
            candidates[update.name] = update
    found = {name: _posterior(plan, update) for name, update in candidates.items()}
    posteriors = {**found, **_given_scale(plan, candidates, found)}
    while lost := _entangled(plan, posteriors):
        points |= lost
        posteriors = {name: p for name, p in posteriors.items() if name not in lost}
        for name, posterior in posteriors.items():
            if isinstance(posterior, GivenScale) and posterior.scale.name not in posteriors:
                posteriors[name] = found[name]
    return Choice(posteriors, points)


def _obstacle(plan: Plan, update: Update) -> str:
    """Why a parameter can have no posterior, whatever the others have."""
    prior = plan.priors.get(update.name)
    if prior is None:
        return "no prior"
    if update.how is not How.CLOSED or update.kind is None:
        return f"no conjugate posterior ({update.reason})"
    if update.is_joint:
        return "coefficients of a linear predictor stay a point"
    if (
        prior.site.density is None
        or prior.site.mask is not None
        or bool((prior.scale != 1.0).any())
    ):
        return "its prior is weighed, masked or evaluated by the model"
    if update.link.is_free or update.kind not in KINDS:
        return f"its posterior is of no known family ({update.reason})"
    if not prior_coefficients(plan, update, plan.structure.start):
        return "its prior is improper"
    for usage in update.usages:
        if not can_expect(tied_factors_of(plan, usage), usage.position):
            return f"it enters a family of no known expectation ({update.reason})"
    for name in plan.factor_and_prior_names():
        slot = plan.site(name).conjugate
        if slot is not None and slot.is_own and update.name in plan.dependencies(name):
            return f"the latent '{name}' is integrated given its prior"
    nodes = [n for n in plan.structure.nodes if update.name in plan.dependencies(n)]
    return f"the nodes of '{nodes[0]}' are placed by it" if nodes else ""


def prior_coefficients(plan: Plan, update: Update, params: Mapping[str, Tensor]) -> list[Tensor]:
    """The coefficients of a prior as a density of the family's parameter; none if it is flat."""
    assert update.kind is not None
    prior = PriorCoefficients.of(ParameterPlan.of(plan, False), update, update.kind)
    assert prior is not None
    found = prior(params, None)
    return as_density(update.kind, update.link, found) if found else found


def as_density(kind: Kind, link: Link, coefficients: list[Tensor]) -> list[Tensor]:
    """Coefficients of the family's parameter, from those as the M-step has them.

    It takes the mode of the model's parameter: if the family's is a power of that, its density has
    the Jacobian besides.
    """
    if kind != RATE or link.exponent is None:
        return coefficients
    a, b = coefficients
    return [a + (1.0 / link.exponent - 1.0), b]


def _posterior(plan: Plan, update: Update) -> PosteriorOf:
    assert update.kind is not None
    parameter = plan.structure.parameters[update.name]
    return KINDS[update.kind](parameter, update.kind, update.link)


def _given_scale(
    plan: Plan, candidates: Mapping[str, Update], found: Mapping[str, PosteriorOf]
) -> dict[str, Posterior]:
    """The locations whose prior, like their data, scales with the precision of the data."""
    out: dict[str, Posterior] = {}
    for name, update in candidates.items():
        density = plan.priors[name].site.density
        assert density is not None
        scales = [source for source in density.sources if source in candidates]
        if update.kind not in (LOCATION, VECTOR) or len(scales) != 1:
            continue
        scale = found[scales[0]]
        rows = _scale_rows(plan, update, scale.name)
        if scale.kind not in (RATE, MATRIX) or rows is None:
            continue
        assert update.kind is not None
        posterior = GivenScale(plan.structure.parameters[name], update.kind, scale=scale, rows=rows)
        if _is_proportional(plan, update, posterior):
            out[name] = posterior
    return out


def _scale_rows(plan: Plan, update: Update, scale: str) -> Tensor | None:
    """The row of a precision that each row of a location is seen with; None if of several."""
    assert update.kind is not None
    shape = plan.structure.parameters[update.name].shape
    rows = torch.full((row_count(shape, update.kind.event_dim),), -1, dtype=torch.long)
    for usage in update.usages:
        tied = tied_factors_of(plan, usage)
        if usage.prior is not None or len(tied.parameters) != 2 or usage.start != 0:
            return None
        if tied.parameters[1].sources != (scale,) or tied.parameters[0].sources != (update.name,):
            return None
        own, other = tied.cells.unbind(1)
        inside = own < len(rows)
        own, other = own[inside], other[inside]
        known = rows[own]
        if bool(((known >= 0) & (known != other)).any()):
            return None
        rows[own] = other
        if not torch.equal(rows[own], other):
            return None
    return rows if bool((rows >= 0).all()) else None


def _is_proportional(plan: Plan, update: Update, posterior: GivenScale) -> bool:
    """Whether the prior of a location has the precision of its data, times a number."""
    scale = posterior.scale
    params = plan.structure.start
    unit = prior_coefficients(plan, update, posterior.at_unit_scale(params))[1]
    values = scale.mean_rows(params)
    factor = torch.linspace(1.0, 2.0, len(values)).to(values)
    values = values * factor.reshape(-1, *(1,) * (values.dim() - 1))
    moved = scale.link.inverse(values).reshape(params[scale.name].shape)
    there = prior_coefficients(plan, update, {**params, scale.name: moved})[1]
    rows = values[posterior.rows].reshape(posterior.batch + values.shape[1:])
    count = posterior.counts(unit)
    if values.dim() > 1:
        count = count[..., None, None]
    expected, there = torch.broadcast_tensors(count * rows, there)
    return bool(((expected - there).abs() <= ALIKE * expected.abs().amax()).all())


def _entangled(plan: Plan, posteriors: Mapping[str, Posterior]) -> dict[str, str]:
    """Parameters that enter the prior of another in a way that no posterior here has room for."""
    lost = {}
    for name, prior in plan.priors.items():
        density, own = prior.site.density, posteriors.get(name)
        sources = density.sources if density is not None else plan.opaque.dependencies.get(name, ())
        for source in sources:
            paired = isinstance(own, GivenScale) and own.scale.name == source
            if source in posteriors and not paired:
                lost[source] = f"it enters the prior of '{name}'"
    return lost
