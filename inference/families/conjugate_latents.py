r"""Latents with conjugate priors: what the integral over one of them is.

Sites that read such a latent multiply its prior density by
:math:`\exp(A + \langle \lambda, t(u) \rangle)`, and the integral is a ratio of normalisers,

.. math::

    \log \int p(u \mid \alpha)\, e^{A + \langle \lambda, t(u) \rangle} \,du
    = A + \log Z(\alpha + \lambda) - \log Z(\alpha).

==================  =================================  ===========================================
latent              statistics :math:`t(u)`            :math:`\log Z`
==================  =================================  ===========================================
Gamma               ``log u, -u``                      ``lgamma(a) - a log b``
inverse gamma       ``-log u, -1 / u``                 the same
Beta                ``log u, log(1 - u)``              ``lgamma(a) + lgamma(b) - lgamma(a + b)``
Dirichlet           ``log u_k``                        ``sum_k lgamma(a_k) - lgamma(sum_k a_k)``
==================  =================================  ===========================================

A prior enters by its *potentials*: what its log density is linear in, its normaliser first. Their
gradients are the expected statistics from which parameters of the prior are estimated. Those of a
Gamma are about one, :math:`\log u - u + 1` and :math:`u - 1`, with coefficients :math:`a` and
:math:`a - b`: where :math:`a = b` grows without bound (a Student's t near the normal distribution)
they remain small numbers, of which no digits are lost.

Reference: Diaconis & Ylvisaker (1979), *Conjugate priors for exponential families*, Annals of
Statistics 7, 269-281.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.gamma_ratios import log_rising, stirling_rest

__all__ = ["ConjugateFamily", "GammaFamily", "conjugate_family"]


@dataclass(frozen=True)
class ConjugateFamily(ABC):
    """A family of priors; instances have no state."""

    name: ClassVar[str]
    """How it is called in tables."""
    power: ClassVar[float] = 1.0
    """The power of the latent that multiplies a rate or a precision; 0 if it is a probability."""
    is_vector: ClassVar[bool] = False
    """Whether an entry of the latent is a vector."""

    @abstractmethod
    def origin(self, shape: Size) -> Tensor:
        """A value that changes nothing where the latent multiplies; the model is read there."""

    @abstractmethod
    def potentials(self, prior: Distribution) -> Tensor:
        """The prior's normaliser and coefficients, ``(*batch, P)``."""

    @abstractmethod
    def hyperparameters(self, potentials: Tensor) -> Tensor:
        """The hyperparameters ``(..., M)`` behind potentials ``(..., P)``."""

    @abstractmethod
    def normaliser(self, hyper: Tensor) -> Tensor:
        """The first of the potentials as a function of the hyperparameters."""

    @abstractmethod
    def log_ratio(self, hyper: Tensor, added: Tensor) -> Tensor:
        """``log Z(hyper + added) - log Z(hyper)``, without a difference of large numbers."""

    @abstractmethod
    def distribution(self, hyper: Tensor) -> Distribution:
        """The distribution of the latent with given hyperparameters."""

    @abstractmethod
    def expected(self, hyper: Tensor) -> tuple[Tensor, Tensor]:
        """What is expected under hyperparameters ``(..., M)``.

        Returns:
            That of the statistics ``t(u)``, ``(..., M)``; and what the potentials of the prior are
            multiplied by in its expected log density, ``(..., P)``.
        """

    def log_evidence(self, prior: Tensor, children: Tensor) -> Tensor:
        """The log of the integral of one latent, ``(...)``.

        Args:
            prior: Potentials of the prior, ``(..., P)``.
            children: ``A`` and the coefficients of the statistics, ``(..., 1 + M)``.

        The normaliser of the prior is what its hyperparameters say; as one of the potentials it
        adds nothing but its gradient.
        """
        hyper = self.hyperparameters(prior)
        silent = prior[..., 0] - self.normaliser(hyper)
        ratio = self.log_ratio(hyper, children[..., 1:])
        return children[..., 0] + ratio + (silent - silent.detach())


@dataclass(frozen=True)
class GammaFamily(ConjugateFamily):
    """Gamma, with exponential and chi-squared: ``Gamma(a, b)``."""

    name: ClassVar[str] = "Gamma"

    def origin(self, shape: Size) -> Tensor:
        return torch.ones(shape)

    def potentials(self, prior: Distribution) -> Tensor:
        if isinstance(prior, dist.Exponential):
            a, b = torch.ones_like(prior.rate), prior.rate
        else:
            assert isinstance(prior, dist.Gamma | dist.InverseGamma)
            a, b = torch.broadcast_tensors(prior.concentration, prior.rate)
        normaliser = self.normaliser(torch.stack([a, b], -1))
        return torch.stack([normaliser, a, a - b, b.detach()], -1)

    def hyperparameters(self, potentials: Tensor) -> Tensor:
        _, a, apart, exact = potentials.unbind(-1)
        b = a - apart  # for the gradient alone: its digits may be lost to a
        return torch.stack([a, exact.detach() + (b - b.detach())], -1)

    def normaliser(self, hyper: Tensor) -> Tensor:
        a, b = hyper.unbind(-1)
        return stirling_rest(a) + a * torch.log(b / a) + (a - b)

    def log_ratio(self, hyper: Tensor, added: Tensor) -> Tensor:
        (a, b), (x, y) = hyper.unbind(-1), added.unbind(-1)
        return log_rising(a, x) - a * torch.log1p(y / b) - x * torch.log(b + y)

    def expected(self, hyper: Tensor) -> tuple[Tensor, Tensor]:
        a, b = hyper.unbind(-1)
        mean, log_mean = a / b, torch.digamma(a) - torch.log(b)
        one, zero = torch.ones_like(mean), torch.zeros_like(mean)
        of_prior = torch.stack([one, log_mean - mean + 1.0, mean - 1.0, zero], -1)
        return torch.stack([log_mean, -mean], -1), of_prior

    def distribution(self, hyper: Tensor) -> Distribution:
        a, b = hyper.unbind(-1)
        return dist.Gamma(a, b, validate_args=False)


@dataclass(frozen=True)
class InverseGammaFamily(GammaFamily):
    """One over a Gamma: a factor of variances instead of precisions."""

    name: ClassVar[str] = "InverseGamma"
    power: ClassVar[float] = -1.0

    def distribution(self, hyper: Tensor) -> Distribution:
        a, b = hyper.unbind(-1)
        return dist.InverseGamma(a, b, validate_args=False)


@dataclass(frozen=True)
class DirichletFamily(ConjugateFamily):
    """The probabilities of categories."""

    name: ClassVar[str] = "Dirichlet"
    power: ClassVar[float] = 0.0
    is_vector: ClassVar[bool] = True

    def origin(self, shape: Size) -> Tensor:
        return torch.full(shape, 1.0 / shape[-1])

    def potentials(self, prior: Distribution) -> Tensor:
        a = self._concentrations(prior)
        return torch.cat([self.normaliser(a).unsqueeze(-1), a], -1)

    def _concentrations(self, prior: Distribution) -> Tensor:
        assert isinstance(prior, dist.Dirichlet)
        concentrations: Tensor = prior.concentration
        return concentrations

    def hyperparameters(self, potentials: Tensor) -> Tensor:
        return potentials[..., 1:]

    def normaliser(self, hyper: Tensor) -> Tensor:
        return torch.lgamma(hyper.sum(-1)) - torch.lgamma(hyper).sum(-1)

    def log_ratio(self, hyper: Tensor, added: Tensor) -> Tensor:
        return log_rising(hyper, added).sum(-1) - log_rising(hyper.sum(-1), added.sum(-1))

    def expected(self, hyper: Tensor) -> tuple[Tensor, Tensor]:
        logs = torch.digamma(hyper) - torch.digamma(hyper.sum(-1, keepdim=True))
        return logs, torch.cat([torch.ones_like(logs[..., :1]), logs], -1)

    def distribution(self, hyper: Tensor) -> Distribution:
        return dist.Dirichlet(hyper, validate_args=False)


@dataclass(frozen=True)
class BetaFamily(DirichletFamily):
    """The probability of an event, ``Beta(a, b)``: its two outcomes are categories."""

    name: ClassVar[str] = "Beta"
    is_vector: ClassVar[bool] = False

    def origin(self, shape: Size) -> Tensor:
        return torch.full(shape, 0.5)

    def _concentrations(self, prior: Distribution) -> Tensor:
        assert isinstance(prior, dist.Beta)
        return torch.stack([prior.concentration1, prior.concentration0], -1)

    def distribution(self, hyper: Tensor) -> Distribution:
        a, b = hyper.unbind(-1)
        return dist.Beta(a, b, validate_args=False)


FAMILIES: dict[type, ConjugateFamily] = {
    dist.Gamma: GammaFamily(),
    dist.Chi2: GammaFamily(),
    dist.Exponential: GammaFamily(),
    dist.InverseGamma: InverseGammaFamily(),
    dist.Beta: BetaFamily(),
    dist.Dirichlet: DirichletFamily(),
}


def conjugate_family(prior: Distribution) -> ConjugateFamily | None:
    """The family of a prior without its wrappers; None if it is none of the table."""
    return FAMILIES.get(type(prior))
