"""Models with heavy tails: each row has a precision of its own, so that outliers weigh little.

coefficients (F), precision, df             weights (K)   precisions, locs (K, ...), df (K)
        |                                        |                    |
        v                                        v                    v
      y (N) <--- u (N), X (N, F)            assignment (N) -------> x (N, D) <--- u (N)
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ember.models.parts.checks import (
    ONE_COLUMN,
    check_enough,
    check_floats,
    check_option,
    check_size,
    check_tensor,
    row_frequency,
)
from ember.models.parts.design import called, check_response, design_matrix, row_offset
from ember.models.parts.emissions import (
    COVARIANCES,
    GAUSSIAN_KEYS,
    gaussian_emission,
    select,
)
from ember.models.parts.gaussian_latents import Line, coefficients_of_line
from ember.models.parts.missing import observe, shown_entries
from ember.models.parts.plates import data_plate, mixture_weights
from ember.models.parts.priors import Hyperparameters, Prior
from ember.models.parts.robust import (
    FREEDOM_KEYS,
    check_freedom,
    freedom_site,
    left_scale,
    middle,
    spread,
    weight_site,
)

__all__ = ["student_t_mixture", "student_t_regression"]


def student_t_regression(
    y: Tensor,
    X: Tensor | None = None,
    *,
    df: float | None = None,
    intercept: bool = True,
    offset: Tensor | Sequence[float] | None = None,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    r"""Responses with a line and noise with heavy tails: robust regression.

    Equations, with the line :math:`l_n` = `X_n @ coefficients + offset_n`::

        coefficients ~ Normal(mean, covariance)
        precision    ~ Gamma(noise_df / 2, noise_scale / 2)
        df           ~ Gamma(df_shape, df_rate)                       unless given
        u_n          ~ Gamma(df / 2, df / 2)
        y_n          ~ Normal(l_n, 1 / sqrt(precision u_n))

    With the latent `u` integrated out a response has Student's t distribution around its line, with
    `df` degrees of freedom and the scale `1 / sqrt(precision)`. Given the data,

    .. math:: E[u_n] = \frac{df + 1}{df + precision\,(y_n - l_n)^2}

    is the weight of row n in the estimates: outliers have little. Many degrees of freedom are the
    ordinary regression.

    ================= ===================== ======================================================
    key of `prior`    shape it broadcasts to default
    ================= ===================== ======================================================
    `"mean"`          (F,)                  the line without slopes at the mean of `y`; 0 beside a
                                            `deviation` of your own
    `"deviation"`     (F,)                  of independent coefficients; see `regression_mixture`
                                            for the weak covariance unless given
    `"noise_df"`      ()                    3, as `df` in `regression_mixture`
    `"noise_scale"`   ()                    the variance that the line of least absolute deviations
                                            leaves, by the median of what is left
    `"df_shape"`      ()                    2
    `"df_rate"`       ()                    0.1: from heavy tails to next to none
    ================= ===================== ======================================================

    NaN in `y` stands for a response that is missing at random, and drops out.

    Args:
        y: the responses (N,), floating, NaN where missing; its dtype is that of all parameters.
        X: the covariates (N, F), or (N,) for a single one; None for an intercept alone.
        df: the degrees of freedom, for example 4; estimated unless given.
        intercept: whether a column of ones stands before the columns of `X`; it counts in F.
        offset: a known term of each row's line (N,).
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `y` or `X` is no tensor, `df` no number, or `prior` no mapping.
        ValueError: if shapes differ, values are not finite, `df` is not positive, there are fewer
            than two responses, or they are all the same; if a key of `prior` is unknown, or a
            hyperparameter or frequency outside its domain.

    References:
        K. L. Lange, R. J. A. Little and J. M. G. Taylor (1989). Robust statistical modeling using
        the t distribution. Journal of the American Statistical Association 84, 881-896.
        C. Liu and D. B. Rubin (1995). ML estimation of the t distribution using EM and its
        extensions, ECM and ECME. Statistica Sinica 5, 19-39.
        M. A. Juarez and M. F. J. Steel (2010). Model-based clustering of non-Gaussian panel data
        based on skew-t distributions. Journal of Business & Economic Statistics 28, 52-66.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> y = torch.tensor([1.1, 1.9, 3.2, 3.9, 9.0, 6.1])
        >>> trace = poutine.trace(student_t_regression).get_trace(y, torch.arange(6.0))
        >>> for name in ("coefficients", "precision", "df", "u", "y"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        coefficients (2,)
        precision ()
        df ()
        u (6,)
        y (6,)
    """
    y = check_response(y, "gaussian", gaps=True)
    design = design_matrix(X, y, intercept)
    known = row_offset(offset, y)
    keys = ("mean", "deviation", "noise_df", "noise_scale", *FREEDOM_KEYS)
    hyper, freedom = Hyperparameters(prior, keys, y), check_freedom(df)
    line = Line.of(y - known, design, frequency)

    coefficients = coefficients_of_line(line, hyper)
    noise_df = hyper.above("noise_df", (), 3.0)
    noise = hyper.above(
        "noise_scale", (), lambda: left_scale(line.y, line.design, line.frequency).to(y)
    )
    precision = pyro.sample("precision", dist.Gamma(noise_df / 2, noise / 2))
    tails = freedom_site(freedom, (), hyper)
    location = (design * coefficients).sum(-1) + known
    with data_plate(len(y), None if frequency is None else line.weights):
        u = weight_site(tails)
        observe("y", dist.Normal(location, (precision * u).rsqrt()), y, line.shown)


def student_t_mixture(
    x: Tensor,
    components: int,
    *,
    df: float | None = None,
    covariance: str = "full",
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    r"""Rows drawn from one of K multivariate t distributions: clusters with outliers.

    Equations, for `covariance="full"`, with `z` the assignment of row n::

        weights      ~ Dirichlet(concentration)
        precisions_k ~ Wishart(df, inverse(scale))
        locs_k       ~ Normal(mean, inverse(kappa precisions_k))
        df_k         ~ Gamma(df_shape, df_rate)                       unless given
        assignment_n ~ Categorical(weights)
        u_n          ~ Gamma(df_z / 2, df_z / 2)
        x_n          ~ Normal(locs_z, inverse(u_n precisions_z))

    With the latent `u` integrated out, the rows of a component have a multivariate t distribution
    with `df_k` degrees of freedom. Given the data and the component, the weight of row n is

    .. math:: E[u_n] = \frac{df_k + D}{df_k + (x_n - locs_k)^\top precisions_k\, (x_n - locs_k)}.

    The precisions have the shapes of `gaussian_mixture`, by `covariance`. The prior is its prior,
    with a `mean` and a `scale` that outliers do not move:

    ================= =========================== ==============================================
    key of `prior`    shape it broadcasts to      default
    ================= =========================== ==============================================
    `"concentration"` (K,)                        2: one row for each component, none is emptied
    `"kappa"`         (K,)                        0.01: the rows that `mean` is worth
    `"mean"`          (K, D)                      the column medians of `x`
    `"df"`            (K,); tied (); diag (K, D)  of the precisions; D + 2; diag 3
    `"scale"`         (K, D, D); tied (D, D);     the variances of the columns, by their median
                      diag (K, D); spherical (K,) absolute deviations, over K^(2 / D); spherical the
                                                  mean of that
    `"df_shape"`      (K,)                        2
    `"df_rate"`       (K,)                        0.1: from heavy tails to next to none
    ================= =========================== ==============================================

    NaN stands for an entry that is missing at random, and drops out.

    Args:
        x: the data (N, D), floating, NaN where missing; its dtype is that of all parameters.
        components: the number K of components.
        df: the degrees of freedom of all components; those of each are estimated unless given.
        covariance: `"full"`, `"diag"`, `"spherical"` or `"tied"`.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `x` is not a floating tensor, `components` no integer, `df` no number, or
            `prior` no mapping.
        ValueError: as `gaussian_mixture`, or if `df` is not positive.

    References:
        D. Peel and G. J. McLachlan (2000). Robust mixture modelling using the t distribution.
        Statistics and Computing 10, 339-348.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[0.0, 1.0], [0.3, 0.8], [5.0, 4.0], [5.2, 4.1], [90.0, 4.4]])
        >>> trace = poutine.trace(student_t_mixture).get_trace(x, 2)
        >>> for name in ("weights", "precisions", "locs", "df", "assignment", "u", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        weights (2,)
        precisions (2, 2, 2)
        locs (2, 2)
        df (2,)
        assignment (5,)
        u (5,)
        x (5, 2)
    """
    x = check_tensor(x, {2: "(N, D)"}, ONE_COLUMN)
    check_floats(x, gaps=True)
    check_size(components, "components")
    check_option(covariance, "covariance", tuple(COVARIANCES))
    hyper = Hyperparameters(prior, ("concentration", *GAUSSIAN_KEYS, *FREEDOM_KEYS), x)
    freedom = check_freedom(df)
    counts = row_frequency(frequency, x)
    check_enough(float(counts.sum()), components, "components")
    _robust_defaults(x, counts, components, covariance, hyper)

    weights = mixture_weights(components, hyper)
    plate = pyro.plate("components", components)
    emission = gaussian_emission(x, counts, components, covariance, hyper, plate)
    with plate:
        tails = freedom_site(freedom, (components,), hyper)
    shown = shown_entries(x)
    with data_plate(len(x), None if frequency is None else counts):
        z = pyro.sample("assignment", dist.Categorical(weights))
        u = weight_site(select(tails, z, 0))
        observe("x", _weighed(emission(z), u), x, shown)


def _robust_defaults(
    x: Tensor, counts: Tensor, components: int, covariance: str, hyper: Hyperparameters
) -> None:
    """Give `mean` and `scale` defaults that outliers do not move."""
    if not hyper.covers("mean"):
        hyper.given["mean"] = middle(x, counts)
    if hyper.covers("scale"):
        return
    with called("x"):
        each = spread(x, counts) / components ** (2 / x.shape[-1])
    full = covariance in ("full", "tied")
    hyper.given["scale"] = torch.diag(each) if full else each
    if covariance == "spherical":
        hyper.given["scale"] = each.mean()


def _weighed(fn: TorchDistribution, u: Tensor) -> TorchDistribution:
    """A row's Gaussian with its precision multiplied by the row's weight."""
    if isinstance(fn, dist.MultivariateNormal):
        precision = fn.precision_matrix * u[..., None, None]
        return type(fn)(fn.loc, precision_matrix=precision)
    base = fn.base_dist
    entries = dist.Normal(base.loc, base.scale * u[..., None].rsqrt())
    weighed: TorchDistribution = entries.to_event(1)
    return weighed
