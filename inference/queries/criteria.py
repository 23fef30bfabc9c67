r"""What a fit cost in parameters, and the criteria that charge for them.

With ``L`` the log likelihood at the estimates, ``d`` free parameters and ``n`` observations,

.. math::

    \mathrm{AIC} = -2 L + 2 d, \qquad \mathrm{BIC} = -2 L + d \log n, \qquad
    \mathrm{ICL} = \mathrm{BIC} - 2 \, \mathbb E[\log p(z \mid x)],

the last one charging for discrete latents that are uncertain; of a mixture it adds
:math:`-2 \sum_{n,k} t_{nk} \log t_{nk}`. Smaller is better.

Reference: Fraley & Raftery (2007), Journal of Classification 24, 155-181 (BIC at the MAP
estimate); Biernacki, Celeux & Govaert (2000), IEEE PAMI 22, 719-725 (ICL).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.expectation.posterior import marginals
from ember.inference.factors.factor import align
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import all_tensors
from ember.inference.plan.without_data import PlanWithoutData
from ember.inference.queries.gaussian.rotations import idle_rotations

__all__ = ["aic", "bic", "entropy", "free_parameters", "observations"]


def aic(log_likelihood: float, parameters: int) -> float:
    """Akaike's criterion, smaller is better."""
    return -2.0 * log_likelihood + 2.0 * parameters


def bic(log_likelihood: float, parameters: int, rows: float) -> float:
    """Schwarz's criterion, smaller is better; NaN where nothing was observed."""
    return -2.0 * log_likelihood + parameters * math.log(rows) if rows > 0 else math.nan


def free_parameters(plan: Plan) -> int:
    """Dimension of the space of parameters that the likelihood depends on.

    A simplex of ``K`` counts ``K - 1``, a covariance matrix ``D (D + 1) / 2``, and so on. Held
    parameters (``pyro.condition``) are not free, and hyperparameters that only the priors of
    other parameters read do not make the likelihood larger: neither is counted. Nor are the
    directions in which loadings only rotate hidden factors.
    """
    if isinstance(plan, PlanWithoutData):
        return plan.record.n_parameters
    reached = {source for name in plan.sites for source in plan.dependencies(name)}
    known = plan.structure.parameters
    coordinates = Coordinates({name: known[name] for name in known if name in reached})
    anywhere = torch.zeros(len(coordinates))
    return int(coordinates.independent(anywhere).sum()) - idle_rotations(plan)


def observations(plan: Plan) -> float:
    """The number of observations: rows with their weights, or steps of a chain."""
    if isinstance(plan, PlanWithoutData):
        return plan.record.n_observations
    total = 0.0
    observed = plan.structure.observed
    chain = [name for name in observed if name in plan.structure.steps]
    # What stands outside the plates of the rows, such as a penalty, is no row.
    inside = [name for name in observed if plan.row in plan.sites[name].plates] or [
        name for name in observed if plan.sites[name].plates
    ]
    for site in chain or [*inside, *observed][:1]:
        mask = plan.sites[site].mask
        # A missing response of a mixed model, or step of a series, is no observation.
        apart = plan.structure.composites or plan.structure.loops or plan.sites[site].slots
        if apart and mask is not None:
            total += float(_steps_with_data(plan, site, mask))
            continue
        scale, plates = plan.scales[site], _plates_of_rows(plan, site)
        if scale is not None and not {*scale.dims} <= plates:
            plates = plan.sites[site].plates
        count = float(math.prod(plan.sizes[s] for s in plates))
        if scale is not None:
            missing = math.prod(plan.sizes[s] for s in plates - set(scale.dims))
            count = float(scale.tensor.sum()) * missing
        total += count
    return total


def _plates_of_rows(plan: Plan, site: str) -> frozenset[str]:
    """The plates that an observation is one of: those of the discrete latents, if there are any.

    The items of a person in a plate below are one row, as those of an event are. Without latents
    each entry is one, and of a mixed model each that a group of rows has.
    """
    plates, latents = plan.sites[site].plates, plan.structure.latent
    if plan.components or plan.units or plan.row not in plates:
        return plates
    own = frozenset[str]().union(*(plan.sites[name].plates for name in latents)) & plates
    return own or plates


def _steps_with_data(plan: Plan, name: str, mask: Tensor) -> Tensor:
    """How many entries of a composite site's plates hold data, each as often as it counts."""
    site, scale = plan.sites[name], plan.scales[name]
    outer = [plan.sizes[s] if s in site.plates else 1 for s in site.layout.outer]
    shown = mask.expand(*outer, *site.inner_shape) if mask.dim() else mask.expand(outer)
    steps = shown.reshape(*outer, -1).any(-1)
    if scale is None:
        return steps.sum()
    return (steps * align(scale.tensor, scale.dims, site.layout.outer)).sum()


def entropy(plan: Plan, params: Mapping[str, Tensor]) -> float:
    """Entropy of the discrete latents' joint posterior, rows by their weights."""
    total, latents = 0.0, list(plan.discrete_latents)
    if not latents:
        return total
    if (len(latents) > 1 or plan.chains) and not plan.on_nodes:
        return _joint_entropy(plan, params)
    for name, t in marginals(plan, params, latents).items():
        entropies = -torch.special.xlogy(t, t).sum(-1).nan_to_num()  # impossible rows have none
        if name in plan.chains:
            entropies = entropies * _inside(plan, name)
        scale = plan.scales[name]
        if scale is not None and entropies.dim() == scale.tensor.dim():
            entropies = entropies * scale.tensor
        total += float(entropies.sum())
    return total


def _joint_entropy(plan: Plan, params: Mapping[str, Tensor]) -> float:
    """The same where latents depend on each other: log evidence less the expected log joint.

    The gradient of the log evidence by the logarithm of a factor is the posterior weight of each of
    its entries.
    """
    evidence = LogEvidence.of(plan)
    with torch.enable_grad():
        logs = [t.detach().requires_grad_() for t in all_tensors(plan, params)]
        total = evidence.contraction.total(evidence.contraction(logs))
        weights = torch.autograd.grad(total, logs, allow_unused=True)
    with torch.no_grad():
        expected = [
            torch.where(w != 0.0, w * t, 0.0).sum()
            for w, t in zip(weights, logs, strict=True)
            if w is not None
        ]
        return max(float(total) - float(torch.stack(expected).sum()), 0.0)


def _inside(plan: Plan, name: str) -> Tensor:
    """Which steps a chain has: past its end there is no state, and no doubt about one."""
    chain, places = plan.chains[name], plan.places(name)
    if chain.lengths is None:
        return torch.ones(())
    dims, lengths = chain.lengths
    plates = tuple(place for place in places if place != chain.time)
    order = torch.arange(chain.steps)
    inside = order < align(lengths, dims, plates).unsqueeze(-1)
    return inside.movedim(-1, places.index(chain.time)).to(torch.float64)
