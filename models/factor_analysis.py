"""Factor analysis: a few hidden numbers of each row explain how its columns move together.

loadings (D, q), locs (D), uniquenesses (D) | variance
      |
      v
   x (N, D) <--- factors (N, q)      (plate "data")
"""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

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
from ember.models.parts.plates import data_plate
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["factor_analysis", "probabilistic_pca"]


def factor_analysis(
    x: Tensor,
    factors: int,
    *,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    r"""Rows that follow q hidden factors, and noise of each column's own.

    Equations::

        loadings_dk    ~ Normal(0, loading_d)
        locs_d         ~ Normal(mean_d, deviation_d)
        uniquenesses_d ~ InverseGamma(df / 2, scale_d / 2)
        factors_n      ~ Normal(0, 1)                                          q of them
        x_nd           ~ Normal(locs_d + loadings_d @ factors_n, sqrt(uniquenesses_d))

    Without the factors a row is multivariate normal with the covariance `loadings loadings' +
    diag(uniquenesses)`. Loadings are known up to a rotation of the factors, `loadings @ R` with any
    orthogonal R.

    =============== ======================= ========================================================
    key of `prior`  shape it broadcasts to  default
    =============== ======================= ========================================================
    `"loading"`     (D, q)                  the standard deviation of the column
    `"mean"`        (D,)                    the mean of the column
    `"deviation"`   (D,)                    ten standard deviations of the column
    `"df"`          (D,)                    3: the mode is a fifth of `scale`, so that no column is
                                            explained without a rest (a Heywood case)
    `"scale"`       (D,)                    the variance of the column
    =============== ======================= ========================================================

    NaN stands for an entry that is missing at random, and drops out.

    Args:
        x: the data (N, D), floating, NaN where missing; its dtype is that of all parameters.
        factors: the number q of factors, at most D.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `x` is not a floating tensor, `factors` no integer or `prior` no mapping.
        ValueError: if `x` is not (N, D), is empty or infinite, has fewer than two rows, a column of
            NaN only or a constant one; if there are more factors than columns; if a key of `prior`
            is unknown, or a hyperparameter or frequency outside its domain.

    References:
        D. B. Rubin and D. T. Thayer (1982). EM algorithms for ML factor analysis. Psychometrika 47,
        69-76.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.randn(6, 4)
        >>> trace = poutine.trace(factor_analysis).get_trace(x, 2)
        >>> for name in ("loadings", "locs", "uniquenesses", "factors", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        loadings (4, 2)
        locs (4,)
        uniquenesses (4,)
        factors (6, 2)
        x (6, 4)
    """
    x = check_rows(x, factors)
    hyper = Hyperparameters(prior, FACTOR_KEYS, x)
    columns = Columns.of(x, frequency, hyper.covers("loading", "deviation", "scale"))

    loadings = loadings_site(columns, (), factors, hyper)
    locs = locs_site(columns, (), hyper)
    uniquenesses = noise_site("uniquenesses", columns.variance, hyper, 1)
    _rows(x, factors, loadings, locs, uniquenesses.sqrt(), columns, frequency is not None)


def probabilistic_pca(
    x: Tensor,
    factors: int,
    *,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    r"""Rows that follow q hidden factors, and noise with the same variance in every column.

    Equations::

        loadings_dk ~ Normal(0, loading_d)
        locs_d      ~ Normal(mean_d, deviation_d)
        variance    ~ InverseGamma(df / 2, scale / 2)
        factors_n   ~ Normal(0, 1)                                           q of them
        x_nd        ~ Normal(locs_d + loadings_d @ factors_n, sqrt(variance))

    At maximum likelihood the loadings span the first q principal components, and `variance` is the
    mean of the variances along the others: PCA as a model, which takes gaps and weights.

    =============== ======================= ========================================================
    key of `prior`  shape it broadcasts to  default
    =============== ======================= ========================================================
    `"loading"`     (D, q)                  the standard deviation of the data, over all columns
    `"mean"`        (D,)                    the mean of the column
    `"deviation"`   (D,)                    ten standard deviations of the data, over all columns
    `"df"`          ()                      3: the mode is a fifth of `scale`
    `"scale"`       ()                      the mean variance of the columns
    =============== ======================= ========================================================

    Columns share one noise, so they should share a unit too. NaN stands for an entry that is
    missing at random, and drops out.

    Args:
        x: the data (N, D), floating, NaN where missing; its dtype is that of all parameters.
        factors: the number q of factors, at most D.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `x` is not a floating tensor, `factors` no integer or `prior` no mapping.
        ValueError: as `factor_analysis`.

    References:
        M. E. Tipping and C. M. Bishop (1999). Probabilistic principal component analysis. Journal
        of the Royal Statistical Society B 61, 611-622.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.randn(6, 4)
        >>> trace = poutine.trace(probabilistic_pca).get_trace(x, 2)
        >>> tuple(trace.nodes["variance"]["value"].shape)
        ()
    """
    x = check_rows(x, factors)
    hyper = Hyperparameters(prior, FACTOR_KEYS, x)
    columns = Columns.of(x, frequency, hyper.covers("loading", "deviation", "scale")).alike()

    loadings = loadings_site(columns, (), factors, hyper)
    locs = locs_site(columns, (), hyper)
    variance = noise_site("variance", columns.variance.mean(), hyper, 0)
    scale = variance.sqrt().unsqueeze(-1).expand(*variance.shape, x.shape[1])
    _rows(x, factors, loadings, locs, scale, columns, frequency is not None)


def _rows(
    x: Tensor,
    factors: int,
    loadings: Tensor,
    locs: Tensor,
    scale: Tensor,
    columns: Columns,
    weighted: bool,
) -> None:
    """Declare the factors of each row, and the row given them."""
    shown = shown_entries(x)
    with data_plate(len(x), columns.weights if weighted else None):
        hidden = factors_site(factors, x)
        location = locs + torch.einsum("...dk,...k->...d", loadings, hidden)
        observe("x", dist.Normal(location, scale).to_event(1), x, shown)
