r"""The distribution of the data that read Gaussian latents, given what is known of these.

With :math:`m_{ns}` and :math:`v_{ns}` the posterior mean and variance of the location of event
:math:`n` at a joint value :math:`s` of the discrete latents, of posterior probability
:math:`w_{ns}`, and :math:`\sigma_{ns}^2` the variance about the location,

.. math:: p(y_n \mid \text{data}) = \sum_s w_{ns} \, N(m_{ns}, v_{ns} + \sigma_{ns}^2).

Reference: Robinson (1991), *That BLUP is a good thing: the estimation of random effects*,
Statistical Science 6, 15-32.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import append_dims
from ember.inference.plan.plan import Plan
from ember.inference.queries.gaussian.locations import Locations
from ember.inference.queries.gaussian.moments import ComponentPosterior
from ember.inference.reading.sequences import stack

__all__ = ["SitePredictive", "predictive", "site_predictive"]


@dataclass(frozen=True)
class SitePredictive:
    """The predictive distribution of an observed site, as a mixture of ``S`` normals.

    Attributes:
        weights: ``(*batch, S)``.
        mean: ``(*batch, S, *event)``.
        covariance: ``(*batch, S, D, D)`` of vectors, the variance ``(*batch, S)`` of numbers.
        plates: How many dims of the batch are plates.
    """

    weights: Tensor
    mean: Tensor
    covariance: Tensor
    plates: int

    @property
    def average(self) -> Tensor:
        """The mean of the mixture, ``(*batch, *event)``."""
        weights = append_dims(self.weights, self.mean.dim() - self.weights.dim())
        return (weights * self.mean).sum(self.weights.dim() - 1)


def predictive(
    plan: Plan, params: Mapping[str, Tensor], rows: int | None = None
) -> Distribution | dict[str, Distribution]:
    """The predictive distribution of each observed site that reads Gaussian latents.

    Args:
        plan: The plan of model and data.
        params: The estimates.
        rows: How many of the last rows are asked for; all unless given.

    Returns:
        A distribution, those of steps of a sequence as one; a dict of them if there are several.
    """
    found = {
        name: site_predictive(plan, params, name)
        for name in plan.structure.observed
        if plan.sites[name].slots
    }
    if not found:
        raise ValueError(
            "no observed site of the model reads a Gaussian latent, and predictive distributions "
            "are of those; forecast(...) gives that of a chain's data, impute(...) fills gaps."
        )
    leading = {name: each.plates for name, each in found.items()}
    steps = plan.structure.steps
    weights, means, covariances = (
        stack({name: getattr(each, kind) for name, each in found.items()}, leading, steps)
        for kind in ("weights", "mean", "covariance")
    )
    out = {
        name: _distribution(
            *(_last(t, rows) for t in (weights[name], means[name], covariances[name]))
        )
        for name in weights
    }
    return next(iter(out.values())) if len(out) == 1 else out


def site_predictive(plan: Plan, params: Mapping[str, Tensor], name: str) -> SitePredictive:
    """The predictive distribution of one observed site that reads Gaussian latents."""
    slots = plan.sites[name].slots
    component = next(c for c in plan.components if slots[0].latent in c.latents)
    posterior = ComponentPosterior.of(plan, params, component)
    locations = Locations.of(plan, params, component, name)
    batch, event = locations.batch, locations.event_dim
    states = len(posterior.weights)
    mean = locations.at(posterior.means)
    own = _own_covariance(locations)
    known = _location_covariance(posterior, locations)
    tail = mean.shape[1 + len(batch) :]
    covariance = (own + known).expand(states, *batch, *tail, *tail[:event])
    weights = posterior.weights[:, locations.rows].expand(states, *batch)
    shown = batch[locations.spare :]
    weights, mean, covariance = (
        tensor.reshape(states, *shown, *tensor.shape[1 + len(batch) :]).movedim(0, len(shown))
        for tensor in (weights, mean, covariance)
    )
    return SitePredictive(weights, mean, covariance, locations.plates - locations.spare)


def _own_covariance(locations: Locations) -> Tensor:
    """The variance about the location, or the covariance matrix of vectors."""
    fn = locations.fn
    if isinstance(fn, dist.MultivariateNormal):
        return locations.argument(fn.covariance_matrix, 2)
    return locations.argument(fn.scale.square(), 0)


def _location_covariance(posterior: ComponentPosterior, locations: Locations) -> Tensor:
    """Posterior covariances of the locations, ``(S, *batch or 1, *event, *event)``."""
    total: Tensor | float = 0.0
    each = list(zip(locations.coefficients, locations.entries, strict=True))
    for c, one in each:
        for d, other in each:
            pair = torch.broadcast_tensors(one, other)
            found = posterior.within(*(index.reshape(-1) for index in pair))
            found = found.reshape((-1, *pair[0].shape))
            if locations.event_dim:
                product = c.unsqueeze(-1) * d.unsqueeze(-2)
                total = total + product * append_dims(found, 2)
            else:
                total = total + c * d * found
    assert isinstance(total, Tensor)
    return total


def _last(tensor: Tensor, rows: int | None) -> Tensor:
    return tensor if rows is None else tensor[len(tensor) - rows :]


def _distribution(weights: Tensor, mean: Tensor, covariance: Tensor) -> Distribution:
    event = mean.dim() - weights.dim()
    if weights.shape[-1] == 1:
        place = weights.dim() - 1
        return _normal(mean.squeeze(place), covariance.squeeze(place), event)
    mixture: Distribution = dist.MixtureSameFamily(
        dist.Categorical(probs=weights, validate_args=False),
        _normal(mean, covariance, event),
        validate_args=False,
    )
    return mixture


def _normal(mean: Tensor, covariance: Tensor, event: int) -> Distribution:
    if event:
        return dist.MultivariateNormal(mean, covariance, validate_args=False)
    return dist.Normal(mean, covariance.sqrt(), validate_args=False)
