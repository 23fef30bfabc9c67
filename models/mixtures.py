"""Mixtures of Gaussians and of Poissons.

weights (K)      precisions, locs | rates   (plate "components")
    |                     |
    v                     v
assignment (N) --------> x (N, D)           (plate "data")
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from ember.models.parts.checks import (
    ONE_COLUMN,
    check_counts,
    check_enough,
    check_floats,
    check_option,
    check_size,
    check_tensor,
    row_frequency,
)
from ember.models.parts.emissions import (
    COVARIANCES,
    GAUSSIAN_KEYS,
    POISSON_KEYS,
    gaussian_emission,
    poisson_emission,
)
from ember.models.parts.missing import observe, shown_entries
from ember.models.parts.plates import data_plate, mixture_weights
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["gaussian_mixture", "poisson_mixture"]


def gaussian_mixture(
    x: Tensor,
    components: int,
    *,
    covariance: str = "full",
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    r"""Rows drawn from one of K Gaussians.

    Equations, for `covariance="full"`, with :math:`\Lambda_k` the site `precisions`::

        weights      ~ Dirichlet(concentration)
        precisions_k ~ Wishart(df, inverse(scale))              E[precisions_k] = df inverse(scale)
        locs_k       ~ Normal(mean, inverse(kappa precisions_k))
        assignment_n ~ Categorical(weights)
        x_n          ~ Normal(locs_z, inverse(precisions_z))    z = assignment_n

    ============= ================== ========== ======================================
    `covariance`  prior of precision shape      a component's covariance
    ============= ================== ========== ======================================
    `"full"`      Wishart            (K, D, D)  any
    `"tied"`      Wishart            (D, D)     any, the same for all components
    `"diag"`      Gamma              (K, D)     independent columns, 1 / precisions
    `"spherical"` Gamma              (K,)       the same variance in every column
    ============= ================== ========== ======================================

    The Gamma priors are the Wishart of one dimension, `Gamma(df / 2, scale / 2)`. The prior is weak
    and in the units of the data, after Fraley and Raftery: no component can collapse on a point.

    ================= =========================== ==============================================
    key of `prior`    shape it broadcasts to      default
    ================= =========================== ==============================================
    `"concentration"` (K,)                        2: one row for each component, none is emptied
    `"kappa"`         (K,)                        0.01: the rows that `mean` is worth
    `"mean"`          (K, D)                      the column means of `x`
    `"df"`            (K,); tied (); diag (K, D)  D + 2; diag 3, which is D + 2 for one column
    `"scale"`         (K, D, D); tied (D, D);     the covariance of `x` over K^(2 / D); diag its
                      diag (K, D); spherical (K,) diagonal; spherical the mean of that
    ================= =========================== ==============================================

    Where the columns of `x` are linearly dependent (or more than the rows), the correlations in the
    default `scale` are shrunk by the square root of the rounding error, which keeps it proper.

    NaN stands for an entry that is missing at random. It drops out: the likelihood of a row is that
    of its observed entries, whatever their pattern, and so are the defaults of the prior.

    Args:
        x: the data (N, D), floating, NaN where missing; its dtype is that of all parameters.
        components: the number K of components.
        covariance: `"full"`, `"diag"`, `"spherical"` or `"tied"`.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative, not only integers; once unless
            given. The default prior counts alike, so this equals repeating the rows.

    Raises:
        TypeError: if `x` is not a floating tensor, `components` no integer, `prior` no mapping.
        ValueError: if `x` is not (N, D), is empty or infinite, has fewer than two rows, fewer than
            `components`, a column of NaN only, or (without a given scale) a constant column; if an
            option or a key of `prior` is unknown, or a hyperparameter or frequency outside its
            domain.

    References:
        C. Fraley and A. E. Raftery (2007). Bayesian regularization for normal mixture estimation
        and model-based clustering. Journal of Classification 24, 155-181.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[0.0, 1.0], [0.3, 0.8], [5.0, 4.0], [5.2, 4.1], [4.9, 4.4]])
        >>> trace = poutine.trace(gaussian_mixture).get_trace(x, 2)
        >>> for name in ("weights", "precisions", "locs", "assignment", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        weights (2,)
        precisions (2, 2, 2)
        locs (2, 2)
        assignment (5,)
        x (5, 2)
    """
    x = check_tensor(x, {2: "(N, D)"}, ONE_COLUMN)
    check_floats(x, gaps=True)
    check_size(components, "components")
    check_option(covariance, "covariance", tuple(COVARIANCES))
    hyper = Hyperparameters(prior, ("concentration", *GAUSSIAN_KEYS), x)
    counts = row_frequency(frequency, x)
    check_enough(float(counts.sum()), components, "components")

    weights = mixture_weights(components, hyper)
    plate = pyro.plate("components", components)
    emission = gaussian_emission(x, counts, components, covariance, hyper, plate)
    shown = shown_entries(x)
    with data_plate(len(x), None if frequency is None else counts):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        observe("x", emission(assignment), x, shown)


def poisson_mixture(
    x: Tensor,
    components: int,
    *,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Counts drawn from one of K Poissons, or rows of counts from K products of Poissons.

    Equations::

        weights      ~ Dirichlet(concentration)
        rates_kd     ~ Gamma(shape, rate)
        assignment_n ~ Categorical(weights)
        x_nd         ~ Poisson(rates_zd)          z = assignment_n

    ================= ====================== =====================================================
    key of `prior`    shape it broadcasts to default
    ================= ====================== =====================================================
    `"concentration"` (K,)                   2: one row for each component, none is emptied
    `"shape"`         (K,) or (K, D)         1.5: half an event, so that no rate is at 0
    `"rate"`          (K,) or (K, D)         shape / mean of `x`: the rates have this mean
    ================= ====================== =====================================================

    A column of zeros counts as half an event in all, so that its default `rate` is finite.

    Args:
        x: counts (N,) or (N, D), of an integer or floating dtype; parameters have torch's default
            dtype where it is integer. NaN stands for a count that is missing at random.
        components: the number K of components.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `x` is not a tensor, `components` no integer or `prior` no mapping.
        ValueError: if `x` has another shape, is empty, infinite, negative or fractional, has fewer
            than two rows or fewer than `components`, or a column of NaN only; if a key of `prior`
            is unknown, or a hyperparameter or frequency outside its domain.

    References:
        G. McLachlan and D. Peel (2000). Finite Mixture Models. Wiley, section 5.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> trace = poutine.trace(poisson_mixture).get_trace(torch.tensor([0, 1, 7, 9, 8]), 2)
        >>> for name in ("weights", "rates", "assignment", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        weights (2,)
        rates (2,)
        assignment (5,)
        x (5,)
    """
    x = check_tensor(x, {1: "(N,)", 2: "(N, D)"})
    check_counts(x, gaps=True)
    check_size(components, "components")
    counts = row_frequency(frequency, x)
    x = x.to(counts.dtype)
    hyper = Hyperparameters(prior, ("concentration", *POISSON_KEYS), x)
    check_enough(float(counts.sum()), components, "components")

    weights = mixture_weights(components, hyper)
    plate = pyro.plate("components", components)
    emission = poisson_emission(x, counts, components, hyper, plate)
    shown = shown_entries(x)
    with data_plate(len(x), None if frequency is None else counts):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        observe("x", emission(assignment), x, shown)
