r"""How far each entry of the data lies from what the fit expects: quantile residuals.

With :math:`F_n` the distribution function of entry :math:`n` at the estimates, discrete latents
summed out by their prior probabilities,

.. math:: r_n = \Phi^{-1}(F_n(y_n)),

standard normal where the model is right (at most 8.1, where the share is 1 to the last digit); of
whole numbers :math:`F_n` is drawn between :math:`F_n(y_n - 1)` and :math:`F_n(y_n)`. Of a single
normal regression this is the residual over the deviation. Effects of groups are taken at their
posterior means.

Reference: Dunn & Smyth (1996), *Randomized quantile residuals*, JCGS 5, 236-244.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import scipy.stats
import torch
from torch import Tensor

from ember.inference.numerics.shapes import prepend_dims
from ember.inference.plan.plan import Plan
from ember.inference.queries.gaussian.predictive import site_predictive
from ember.inference.queries.units import unit_posterior
from ember.inference.reading.unwrapping import unwrap
from ember.inference.reports.drawing.emission import Emission
from ember.inference.reports.drawing.emissions import read_emissions
from ember.inference.reports.fitted import Fitted

__all__ = ["Residuals", "residuals_of"]


EDGE = 1e-300  # probabilities below have no finite residual
WHOLE = (dist.Poisson, dist.Bernoulli, dist.Binomial)


@dataclass(frozen=True)
class Residuals:
    """The residuals of one site.

    Attributes:
        site: The observed site.
        name: What its data are called.
        values: The residuals ``(N,)``, NaN where the data are missing.
        expected: What is expected of each entry, ``(N,)``.
        data: The data, ``(N,)``.
        is_yes_or_no: Whether the data are 0 and 1.
    """

    site: str
    name: str
    values: Tensor
    expected: Tensor
    data: Tensor
    is_yes_or_no: bool = False


def residuals_of(fit: Fitted, seed: int) -> list[Residuals]:
    """The residuals of every site of single numbers.

    Raises:
        ValueError: If there is none whose distribution function is known.
    """
    plan = fit.plan
    found: list[Residuals] = []
    if plan.units:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = _of_units(fit)
    elif not plan.on_nodes and not plan.structure.conjugate:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            names = [n for n in plan.structure.observed if _reads_effects(plan, n)]
            found = [_of_effects(fit, name) for name in names]
            emissions = read_emissions(plan, fit.params, fit.columns, fit.labels)
            emissions = [_as_number(emission) for emission in emissions]
            found += [_of_emission(fit, each) for each in emissions if _has_function(each)]
    if not found:
        raise ValueError(
            "residuals are of single numbers: normal, gamma or log-normal, counts of a Poisson, or "
            "yes and no, outside chains; the model has none of these, or its latents are on nodes "
            "or have conjugate priors."
        )
    return found


def _reads_effects(plan: Plan, name: str) -> bool:
    site = plan.sites[name]
    return bool(site.slots) and not site.event_dim and name not in plan.structure.steps


def _of_effects(fit: Fitted, name: str) -> Residuals:
    """Of a site that reads Gaussian latents, about their posterior means."""
    plan, site = fit.plan, fit.plan.sites[name]
    data = site.value.to(torch.float64)
    if site.missing is not None:
        data = torch.where(site.missing, torch.nan, data)
    expected = site_predictive(plan, fit.params, name).average
    base: Any = unwrap(plan.structure.trace(fit.params).nodes[name]["fn"]).base
    scale = base.stddev
    values = (data - expected) / scale
    column, shape = fit.columns.get(name, (name,))[0], data.shape
    values, expected, data = (t.expand(shape).reshape(-1) for t in (values, expected, data))
    return Residuals(name, column, values, expected, data)


def _of_units(fit: Fitted) -> list[Residuals]:
    """Of sites that read latents of units, these at their posterior means."""
    plan, means = fit.plan, dict[str, Tensor]()
    for name in plan.structure.units:
        posterior = unit_posterior(plan, fit.params, name)
        assert posterior is not None
        means[name] = posterior.mean
    trace = plan.structure.trace({**fit.params, **means})
    found = []
    for name in plan.structure.observed:
        site = plan.sites[name]
        base: Any = unwrap(trace.nodes[name]["fn"]).base
        if site.unit is None or site.event_dim or not _is_known(base):
            continue
        data = site.value.to(torch.float64)
        shown = torch.ones_like(data, dtype=torch.bool)
        if site.mask is not None:
            shown = prepend_dims(site.mask, data.dim()).expand(data.shape)
        values, expected, data = (
            torch.where(shown, t.expand(data.shape), torch.nan).reshape(-1)
            for t in (_normal(_shares(base, data)), base.mean, data)
        )
        column = fit.columns.get(name, (name,))[0]
        found.append(_named(fit, Residuals(name, column, values, expected, data), base))
    return found


def _named(fit: Fitted, found: Residuals, base: Any) -> Residuals:
    """Residuals under the name of their column; of yes and no that of the answer."""
    if not isinstance(base, dist.Bernoulli):
        return found
    labels = fit.labels.get(found.name, ())
    answer = f"{found.name} = {labels[1] if len(labels) > 1 else 1}"
    return dataclasses.replace(found, name=answer, is_yes_or_no=True)


def _shares(base: Any, data: Tensor) -> Tensor:
    """The distribution function at the data, spread out within the steps of whole numbers."""
    upper = _function(base, data)
    if not isinstance(base, WHOLE):
        return upper
    lower = _function(base, data - 1.0)
    return lower + torch.rand(upper.shape) * (upper - lower)


def _normal(share: Tensor) -> Tensor:
    """The quantile of a normal, finite."""
    inside = share.clamp(EDGE, 1.0 - torch.finfo(torch.float64).eps / 2)
    quantile: Tensor = torch.special.ndtri(inside)
    return quantile


def _is_known(base: Any) -> bool:
    """Whether the distribution function is."""
    if isinstance(base, WHOLE):
        return True
    try:
        base.cdf(base.mean)
    except NotImplementedError:
        return False
    return not base.event_shape


def _as_number(emission: Emission) -> Emission:
    """A site of vectors with a single entry as one of numbers."""
    if emission.covariances is None or emission.base.event_shape != (1,):
        return emission
    scale = emission.covariances.reshape(-1).sqrt()
    normal = dist.Normal(emission.means.reshape(-1), scale)
    return dataclasses.replace(emission, base=normal, axes=("state",))


def _has_function(emission: Emission) -> bool:
    """Whether the data are single numbers whose distribution function is known."""
    if emission.is_chain or len(emission.columns) != 1 or emission.base.event_shape:
        return False
    return _is_known(emission.base)


def _of_emission(fit: Fitted, emission: Emission) -> Residuals:
    """Of a site without Gaussian latents: its states are summed out."""
    base: Any = emission.base
    data, weights = emission.rows[:, 0], _prior(fit, emission)
    known = ~data.isnan()
    at = torch.where(known, data, base.mean.reshape(-1)[0].round())
    share = (weights * _by_state(emission, _function(base, _placed(emission, at)))).sum(0)
    if isinstance(base, WHOLE):
        before = _by_state(emission, _function(base, _placed(emission, at - 1.0)))
        lower = (weights * before).sum(0)
        share = lower + torch.rand(len(at)) * (share - lower)
    values = torch.where(known, _normal(share), torch.nan)
    expected = (weights * _by_state(emission, base.mean)).sum(0).expand(len(data))
    found = Residuals(emission.site, emission.columns[0], values, expected, data)
    return _named(fit, found, base)


def _prior(fit: Fitted, emission: Emission) -> Tensor:
    """The probability of each state before the data, ``(K, N)`` or ``(K, 1)``."""
    if emission.latent is None or emission.states == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    trace = fit.plan.structure.trace(fit.params)
    base: Any = unwrap(trace.nodes[emission.latent]["fn"]).base
    probs: Tensor = base.probs
    if isinstance(base, dist.Bernoulli):
        probs = torch.stack([1.0 - probs, probs], -1)
    return probs.reshape(-1, emission.states).T.to(torch.float64)


def _function(base: Any, value: Tensor) -> Tensor:
    """The distribution function."""
    if isinstance(base, dist.Poisson):
        return torch.as_tensor(scipy.stats.poisson(base.rate).cdf(value))
    if isinstance(base, dist.Bernoulli):
        return torch.as_tensor(scipy.stats.bernoulli(base.probs).cdf(value))
    if isinstance(base, dist.Binomial):
        return torch.as_tensor(scipy.stats.binom(base.total_count, base.probs).cdf(value))
    found: Tensor = base.cdf(value)
    return found


def _placed(emission: Emission, values: Tensor) -> Tensor:
    """The data along the dims of the base distribution that are rows."""
    sizes = [1] * len(emission.axes)
    rows = [i for i, axis in enumerate(emission.axes) if axis == "place"]
    if not rows:  # all rows are alike
        return values.reshape(-1, *sizes)
    for i, size in zip(rows, emission.values.shape[:-1][-len(rows) :], strict=True):
        sizes[i] = size
    return values.reshape(sizes)


def _by_state(emission: Emission, values: Tensor) -> Tensor:
    """What the base distribution says, ``(K, N)`` or ``(K, 1)``."""
    extra = values.dim() - len(emission.axes)
    states = [i + extra for i, axis in enumerate(emission.axes) if axis == "state"]
    if not states:
        return values.reshape(1, -1)
    return values.movedim(states[0], 0).reshape(values.shape[states[0]], -1)
