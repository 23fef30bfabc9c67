"""Mixtures of factor analysers: clusters, in each of which a few factors tie the columns.

weights (K)      loadings (K, D, q), locs (K, D)    uniquenesses
    |                     |                              |
    v                     v                              |
assignment (N) -------> x (N, D) <-----------------------+
                          |
                    factors (N, q)                  (plate "data")
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.checks import check_enough, check_option, check_size
from ember.models.parts.emissions import select
from ember.models.parts.factors import (
    FACTOR_KEYS,
    Columns,
    check_rows,
    factors_site,
    loadings_site,
    locs_site,
    noise_site,
)
from ember.models.parts.missing import observe, shown_entries
from ember.models.parts.plates import data_plate, mixture_weights
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["mixture_of_factor_analysers"]


def mixture_of_factor_analysers(
    x: Tensor,
    components: int,
    factors: int,
    *,
    uniquenesses: str = "free",
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    r"""Rows drawn from one of K factor analysers: Gaussians whose covariances have few parameters.

    Equations::

        weights         ~ Dirichlet(concentration)
        loadings_kdj    ~ Normal(0, loading_d)
        locs_kd         ~ Normal(mean_d, deviation_d)
        uniquenesses_kd ~ InverseGamma(df / 2, scale_d / 2)
        assignment_n    ~ Categorical(weights)                     z = assignment_n
        factors_n       ~ Normal(0, 1)                             q of them
        x_nd            ~ Normal(locs_zd + loadings_zd @ factors_n, sqrt(uniquenesses_zd))

    A component's covariance is `loadings_k loadings_k' + diag(uniquenesses_k)`.

    ================= ====================== =======================================================
    key of `prior`    shape it broadcasts to default
    ================= ====================== =======================================================
    `"concentration"` (K,)                   2: one row for each component, none is emptied
    `"loading"`       (K, D, q)              the standard deviation of the column
    `"mean"`          (K, D)                 the mean of the column
    `"deviation"`     (K, D)                 ten standard deviations of the column
    `"df"`            (K, D); tied (D,)      3: the mode is a fifth of `scale`
    `"scale"`         (K, D); tied (D,)      the variance of the column, over K^2
    ================= ====================== =======================================================

    NaN stands for an entry that is missing at random, and drops out. Several starts help, as in any
    mixture: `EM(..., restarts=20)`.

    Args:
        x: the data (N, D), floating, NaN where missing; its dtype is that of all parameters.
        components: the number K of components.
        factors: the number q of factors, at most D.
        uniquenesses: `"free"`, or `"tied"` for the same in all components.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `x` is not a floating tensor, `components` or `factors` no integer, or `prior`
            no mapping.
        ValueError: as `factor_analysis`, or if there are fewer rows than `components`.

    References:
        Z. Ghahramani and G. E. Hinton (1996). The EM algorithm for mixtures of factor analyzers.
        Technical report CRG-TR-96-1, University of Toronto.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.randn(8, 4)
        >>> trace = poutine.trace(mixture_of_factor_analysers).get_trace(x, 3, 2)
        >>> for name in ("weights", "loadings", "locs", "uniquenesses", "assignment", "factors"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        weights (3,)
        loadings (3, 4, 2)
        locs (3, 4)
        uniquenesses (3, 4)
        assignment (8,)
        factors (8, 2)
    """
    x = check_rows(x, factors)
    check_size(components, "components")
    check_option(uniquenesses, "uniquenesses", ("free", "tied"))
    hyper = Hyperparameters(prior, ("concentration", *FACTOR_KEYS), x)
    columns = Columns.of(x, frequency, hyper.covers("loading", "deviation", "scale"))
    check_enough(float(columns.weights.sum()), components, "components")

    weights = mixture_weights(components, hyper)
    tied = uniquenesses == "tied"
    plate = pyro.plate("components", components)
    if tied:
        variances = noise_site("uniquenesses", columns.variance / components**2, hyper, 1)
    with plate:
        loadings = loadings_site(columns, (components,), factors, hyper)
        locs = locs_site(columns, (components,), hyper)
        if not tied:
            each = (columns.variance / components**2).expand(components, -1)
            variances = noise_site("uniquenesses", each, hyper, 1)
    shown = shown_entries(x)
    with data_plate(len(x), None if frequency is None else columns.weights):
        z = pyro.sample("assignment", dist.Categorical(weights))
        hidden = factors_site(factors, x)
        location = select(locs, z, 1) + torch.einsum(
            "...dk,...k->...d", select(loadings, z, 2), hidden
        )
        scale = (variances if tied else select(variances, z, 1)).sqrt()
        observe("x", dist.Normal(location, scale).to_event(1), x, shown)
