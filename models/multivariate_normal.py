"""One multivariate normal, whose rows may have gaps.

precisions (D, D) ---> locs (D)
      |                  |
      +-----> x (N, D) <-+       (plate "data")
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from ember.models.parts.checks import (
    ONE_COLUMN,
    check_enough,
    check_floats,
    check_tensor,
    row_frequency,
)
from ember.models.parts.emissions import GAUSSIAN_KEYS, Wishart
from ember.models.parts.missing import normal_rows, observe, shown_entries
from ember.models.parts.plates import data_plate
from ember.models.parts.priors import (
    Hyperparameters,
    Prior,
    default_scale,
    weighted_mean,
)

__all__ = ["multivariate_normal"]


def multivariate_normal(
    x: Tensor,
    *,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    r"""Rows drawn from one multivariate normal, entries missing at random.

    Equations, with :math:`\Lambda` the site `precisions`::

        precisions ~ Wishart(df, inverse(scale))                E[precisions] = df inverse(scale)
        locs       ~ Normal(mean, inverse(kappa precisions))
        x_n        ~ Normal(locs, inverse(precisions))

    NaN stands for an entry that is missing at random. The likelihood of a row is that of its
    observed entries: means, covariances and regressions of the columns on each other are estimated
    from all there is, and gaps filled by `fit.impute()`.

    ================ ========================= ===================================================
    key of `prior`   shape it broadcasts to    default
    ================ ========================= ===================================================
    `"kappa"`        ()                        0.01: the rows that `mean` is worth
    `"mean"`         (D,)                      the column means of `x`
    `"df"`           ()                        D + 2
    `"scale"`        (D, D)                    the covariance of `x`
    ================ ========================= ===================================================

    Args:
        x: the data (N, D), floating, NaN where missing; its dtype is that of all parameters.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `x` is not a floating tensor or `prior` no mapping.
        ValueError: if `x` is not (N, D), is empty or infinite, has fewer than two rows, a column of
            NaN only or (without a given scale) a constant one; if a key of `prior` is unknown, or a
            hyperparameter or frequency outside its domain.

    References:
        R. J. A. Little and D. B. Rubin (2019). Statistical Analysis with Missing Data, 3rd edition.
        Wiley, section 11.2.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[0.0, 1.0], [0.3, torch.nan], [5.0, 4.0], [torch.nan, 4.1]])
        >>> trace = poutine.trace(multivariate_normal).get_trace(x)
        >>> for name in ("precisions", "locs", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        precisions (2, 2)
        locs (2,)
        x (4, 2)
    """
    x = check_tensor(x, {2: "(N, D)"}, ONE_COLUMN)
    check_floats(x, gaps=True)
    hyper = Hyperparameters(prior, GAUSSIAN_KEYS, x)
    counts = row_frequency(frequency, x)
    check_enough(float(counts.sum()), 1, "rows")
    dim = x.shape[1]
    df = hyper.above("df", (), dim + 2.0, bound=dim - 1)
    scale = hyper.positive_definite("scale", (dim, dim), lambda: default_scale(x, counts, 1))
    mean = hyper.real("mean", (dim,), lambda: weighted_mean(x, counts))
    kappa = hyper.above("kappa", (), 0.01)

    precisions = pyro.sample("precisions", Wishart(df, precision_matrix=scale))
    locs = pyro.sample("locs", dist.MultivariateNormal(mean, precision_matrix=kappa * precisions))
    with data_plate(len(x), None if frequency is None else counts):
        rows = normal_rows(x)(locs, precision_matrix=precisions)
        observe("x", rows, x, shown_entries(x))
