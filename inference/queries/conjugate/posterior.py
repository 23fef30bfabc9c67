"""What is known of a latent with a conjugate prior given the data: ``fit.posterior("u")``."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.plan.plan import Plan
from ember.inference.queries.conjugate.moments import EntryPosteriors

__all__ = ["ConjugatePosterior", "conjugate_posterior"]


@dataclass(frozen=True, eq=False)
class ConjugatePosterior:
    r"""The posterior of a latent with a conjugate prior, discrete latents averaged over.

    With the posterior probability :math:`w_s` of each joint value of these, it is
    :math:`\sum_s w_s\, p(u \mid s, \text{data})`, where each term belongs to the family of the
    prior.

    Attributes:
        name: The latent site.
        mean: Its posterior mean, in the shape of the latent. That of a scale of a Normal is the
            weight of the row in the estimates: small where it is an outlier.
        variance: The posterior variance of every entry, in the same shape.
        distribution: The same as a Pyro distribution: a ``Gamma``, ``InverseGamma``, ``Beta`` or
            ``Dirichlet``, beside discrete latents a ``MixtureSameFamily`` of them.

    Example:
        >>> from ember.inference import EM
        >>> from ember.models import student_t_regression
        >>> y = torch.tensor([1.1, 1.9, 3.2, 3.9, 9.0, 6.1])
        >>> fit = EM(student_t_regression).fit(y, torch.arange(6.0), df=4)
        >>> [round(weight, 2) for weight in fit.posterior("u").mean.tolist()]
        [1.23, 1.16, 1.15, 1.13, 0.02, 1.25]
    """

    name: str
    mean: Tensor
    variance: Tensor
    distribution: Distribution

    @property
    def batch_shape(self) -> torch.Size:
        """The sizes of the plates."""
        return self.distribution.batch_shape

    @property
    def stddev(self) -> Tensor:
        """The posterior standard deviation of every entry."""
        return self.variance.sqrt()


def conjugate_posterior(
    plan: Plan, params: Mapping[str, Tensor], name: str
) -> ConjugatePosterior | None:
    """The posterior of a latent with a conjugate prior; None if there is none of this name."""
    component = next((c for c in plan.conjugate if c.latent == name), None)
    if component is None:
        return None
    found, site = EntryPosteriors.of(plan, params, component), plan.sites[name]
    shape = site.value.shape
    vector = component.width > 1
    batch = shape[:-1] if vector else shape
    weights, fn = found.weights, found.distribution
    whole: Distribution
    if len(weights) == 1:
        hyper = found.hyper[0].reshape(*batch, -1)
        whole = component.family.distribution(hyper)
    else:
        hyper = found.hyper.movedim(0, 1).reshape(*batch, len(weights), -1)
        probs = weights.T.reshape(*batch, -1)
        whole = dist.MixtureSameFamily(
            dist.Categorical(probs=probs, validate_args=False),
            component.family.distribution(hyper),
            validate_args=False,
        )
    parts = weights.unsqueeze(-1) if vector else weights
    mean = (parts * fn.mean).sum(0)
    spread = torch.where(parts > 0, parts * (fn.variance + (fn.mean - mean).square()), 0.0 * parts)
    return ConjugatePosterior(name, mean.reshape(shape), spread.sum(0).reshape(shape), whole)
