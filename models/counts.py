"""Counts with too many zeros, or of too much spread, for a Poisson.

inflation         weights (K)     rates (K), concentrations (K)   (plate "components")
    |                 |                 |
    v                 v                 v
structural (N)  assignment (N) ------> x (N)                      (plate "data")
    |                                   ^
    +-----------------------------------+
"""

from collections.abc import Sequence
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import BoolTensor, Tensor

from ember.models.parts.checks import (
    check_counts,
    check_enough,
    check_option,
    check_size,
    check_tensor,
    row_frequency,
)
from ember.models.parts.counts import (
    GammaPoisson,
    GatedGammaPoisson,
    PositiveGammaPoisson,
    PositivePoisson,
)
from ember.models.parts.emissions import select
from ember.models.parts.plates import data_plate, mixture_weights
from ember.models.parts.priors import HALF_COUNT, Hyperparameters, Prior, count_mean

__all__ = ["count_mixture"]

ZEROS = {"inflated": "inflation", "hurdle": "occurrence"}


def count_mixture(
    x: Tensor,
    components: int = 1,
    *,
    family: str = "poisson",
    zeros: str | None = None,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Counts of K kinds, over-dispersed or with zeros of their own.

    Equations, where a Gamma-Poisson (negative binomial) has mean `rates_k` and variance
    `rates_k + rates_k^2 / concentrations_k`::

        weights          ~ Dirichlet(concentration)
        rates_k          ~ Gamma(shape, rate)
        concentrations_k ~ Gamma(dispersion_shape, dispersion_rate)   "negative_binomial" only
        assignment_n     ~ Categorical(weights)                       z = assignment_n
        x_n              ~ Poisson(rates_z) or GammaPoisson(...)

    ============ ========================================= =======================================
    `zeros`      sites                                     x_n
    ============ ========================================= =======================================
    None         none                                      as above
    `"inflated"` `inflation`, latent `structural_n ~       0 where `structural_n` is 1, else as
                 Bernoulli(inflation)`                     above, which may be 0 too
    `"hurdle"`   `occurrence`, observed `positive_n ~      0 where `positive_n` is 0, else as above
                 Bernoulli(occurrence)`, which is x_n > 0  given that it is not 0
    ============ ========================================= =======================================

    ===================== ===================== ==================================================
    key of `prior`        shape it broadcasts to default
    ===================== ===================== ==================================================
    `"concentration"`     (K,)                  2: one row for each component, none is emptied
    `"shape"`             (K,)                  1.5: half an event, so that no rate is at 0
    `"rate"`              (K,)                  shape / mean of `x`: the rates have this mean
    `"dispersion_shape"`  (K,)                  1.5: no concentration is at 0 ...
    `"dispersion_rate"`   (K,)                  0.1: ... nor at infinity, which is the Poisson
    `"ones"`, `"zeros"`   ()                    1.5: half a row of each kind, for the Beta prior of
                                                `inflation` or `occurrence`
    ===================== ===================== ==================================================

    Args:
        x: counts (N,), of an integer or floating dtype; parameters have torch's default dtype
            where it is integer.
        components: the number K of components; 1 for a zero-inflated or hurdle model alone.
        family: `"poisson"` or `"negative_binomial"`.
        zeros: None, `"inflated"` or `"hurdle"`.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given. A table
            of counts is passed so.

    Raises:
        TypeError: if `x` is not a tensor, `components` no integer or `prior` no mapping.
        ValueError: if `x` is not (N,), is empty, not finite, negative or fractional, has fewer
            than two rows or fewer than `components`, or only zeros where there is a hurdle; if an
            option or a key of `prior` is unknown, or a hyperparameter or frequency outside its
            domain.

    References:
        D. Lambert (1992). Zero-inflated Poisson regression, with an application to defects in
        manufacturing. Technometrics 34, 1-14.
        J. Mullahy (1986). Specification and testing of some modified count data models. Journal
        of Econometrics 33, 341-365.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([0, 0, 0, 3, 4, 0, 5])
        >>> trace = poutine.trace(count_mixture).get_trace(x, zeros="inflated")
        >>> for name in ("inflation", "weights", "rates", "structural", "assignment", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        inflation ()
        weights (1,)
        rates (1,)
        structural (7,)
        assignment (7,)
        x (7,)
    """
    x = check_tensor(x, {1: "(N,)"}, "columns of counts go to `poisson_mixture`")
    check_counts(x)
    check_size(components, "components")
    check_option(family, "family", ("poisson", "negative_binomial"))
    check_option(zeros, "zeros", (None, *ZEROS))
    overdispersed = family == "negative_binomial"
    keys = ["concentration", "shape", "rate"]
    keys += ["dispersion_shape", "dispersion_rate"] if overdispersed else []
    keys += ["ones", "zeros"] if zeros else []
    counts = row_frequency(frequency, x)
    x = x.to(counts.dtype)
    hyper = Hyperparameters(prior, keys, x)
    check_enough(float(counts.sum()), components, "components")
    if zeros == "hurdle" and dist.is_validation_enabled() and not bool((x > 0).any()):
        raise ValueError("`x` has only zeros, so nothing is above the hurdle: use zeros=None.")

    weights = mixture_weights(components, hyper)
    if zeros:
        ones, others = (hyper.above(key, (), HALF_COUNT) for key in ("ones", "zeros"))
        share = pyro.sample(ZEROS[zeros], dist.Beta(ones, others))
    shape = hyper.above("shape", (components,), HALF_COUNT)
    rate = hyper.above("rate", (components,), lambda: shape / count_mean(x, counts))
    concentrations = None
    with pyro.plate("components", components):
        rates = pyro.sample("rates", dist.Gamma(shape, rate))
        if overdispersed:
            above = hyper.above("dispersion_shape", (components,), HALF_COUNT)
            below = hyper.above("dispersion_rate", (components,), 0.1)
            concentrations = pyro.sample("concentrations", dist.Gamma(above, below))

    with data_plate(len(x), None if frequency is None else counts):
        occurs, shown = None, torch.tensor(True)
        if zeros == "inflated":
            occurs = 1.0 - pyro.sample("structural", dist.Bernoulli(share))
        elif zeros == "hurdle":
            occurs = pyro.sample("positive", dist.Bernoulli(share), obs=(x > 0).to(x.dtype))
            shown = x > 0  # rows without a count say nothing about its component
        with poutine.mask(mask=cast(BoolTensor, shown)):
            z = pyro.sample("assignment", dist.Categorical(weights))
        mean = select(rates, z, 0)
        if concentrations is None:
            count = _poisson(mean, occurs, zeros)
        else:
            count = _gamma_poisson(mean, select(concentrations, z, 0), occurs, zeros)
        pyro.sample("x", count, obs=x)


def _poisson(mean: Tensor, occurs: Tensor | None, zeros: str | None) -> TorchDistribution:
    if occurs is None:
        return dist.Poisson(mean)
    if zeros == "hurdle":
        return PositivePoisson(mean, occurs)
    return dist.Poisson(torch.where(occurs > 0, mean, 0.0))


def _gamma_poisson(
    mean: Tensor, concentration: Tensor, occurs: Tensor | None, zeros: str | None
) -> TorchDistribution:
    if occurs is None:
        return GammaPoisson(concentration, concentration / mean)
    gated = PositiveGammaPoisson if zeros == "hurdle" else GatedGammaPoisson
    return gated(concentration, concentration / mean, occurs)
