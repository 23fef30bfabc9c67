r"""How far each entry of the data lies from what the fit expects: quantile residuals.

With :math:`F_n` the distribution function of entry :math:`n` at the estimates, discrete latents
summed out by their prior probabilities,

.. math:: r_n = \Phi^{-1}(F_n(y_n)),

standard normal where the model is right; of whole numbers :math:`F_n` is drawn between
:math:`F_n(y_n - 1)` and :math:`F_n(y_n)`. Of a single normal regression this is the residual over
the deviation. Effects of groups are taken at their posterior means, as what the data expect.

Reference: Dunn & Smyth (1996), *Randomized quantile residuals*, JCGS 5, 236-244.
"""

import dataclasses
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.plan.plan import Plan
from ember.inference.queries.gaussian.predictive import site_predictive
from ember.inference.reading.unwrapping import unwrap
from ember.inference.reports.drawing.emission import Emission
from ember.inference.reports.drawing.emissions import read_emissions
from ember.inference.reports.fitted import Fitted

__all__ = ["Residuals", "residuals_of"]


EDGE = 1e-300  # probabilities below have no finite residual
WHOLE = (dist.Poisson, dist.Bernoulli)


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
    found = []
    if not plan.on_nodes and not plan.structure.conjugate:
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
    scale = unwrap(plan.structure.trace(fit.params).nodes[name]["fn"]).base.stddev
    values = (data - expected) / scale
    (shown,) = fit.columns.get(name, (name,))[:1]
    shape = data.shape
    flat = (t.expand(shape).reshape(-1) for t in (values, expected, data))
    return Residuals(name, shown, *flat)


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
    if isinstance(emission.base, WHOLE):
        return True
    try:
        emission.base.cdf(emission.base.mean)
    except NotImplementedError:
        return False
    return emission.kind == "real"


def _of_emission(fit: Fitted, emission: Emission) -> Residuals:
    """Of a site without Gaussian latents: its states are summed out."""
    base, data = emission.base, emission.rows[:, 0]
    known = ~data.isnan()
    at = torch.where(known, data, emission.base.mean.reshape(-1)[0].round())
    weights = _prior(fit, emission)
    upper = (weights * _by_state(emission, _function(base, _placed(emission, at)))).sum(0)
    if isinstance(base, WHOLE):
        lower = _function(base, _placed(emission, at - 1.0))
        lower = (weights * _by_state(emission, lower)).sum(0)
        upper = lower + torch.rand(len(at)) * (upper - lower)
    values = torch.special.ndtri(upper.clamp(EDGE, 1.0 - torch.finfo(torch.float64).eps / 2))
    expected = (weights * _by_state(emission, base.mean)).sum(0).expand(len(data))
    name, yes = emission.columns[0], emission.labels.get(emission.columns[0], ())
    is_yes_or_no = isinstance(base, dist.Bernoulli)
    if is_yes_or_no:
        name = f"{name} = {yes[1] if len(yes) > 1 else 1}"
    values = torch.where(known, values, torch.nan)
    return Residuals(emission.site, name, values, expected, data, is_yes_or_no)


def _prior(fit: Fitted, emission: Emission) -> Tensor:
    """The probability of each state before the data, ``(K, N)`` or ``(K, 1)``."""
    if emission.latent is None or emission.states == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    trace = fit.plan.structure.trace(fit.params)
    base = unwrap(trace.nodes[emission.latent]["fn"]).base
    probs = base.probs
    if isinstance(base, dist.Bernoulli):
        probs = torch.stack([1.0 - probs, probs], -1)
    return probs.reshape(-1, emission.states).T.to(torch.float64)


def _function(base: Distribution, value: Tensor) -> Tensor:
    """The distribution function."""
    if isinstance(base, dist.Poisson):
        below = torch.special.gammaincc(value.clamp_min(0.0) + 1.0, base.rate)
        return torch.where(value < 0, 0.0, below)
    if isinstance(base, dist.Bernoulli):
        return torch.where(value < 0, 0.0, torch.where(value < 1, 1.0 - base.probs, 1.0))
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
