"""Mixtures of regressions: each row follows one of several lines, and which one is not known.

weights (K)      coefficients (K, F), precisions (K)   (plate "components")
    |                     |
    v                     v
assignment (N) --------> y (N) <--- X (N, F)            (plate "data")
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from ember.models.parts.checks import check_enough, check_size, row_frequency
from ember.models.parts.design import (
    called,
    check_family,
    check_response,
    design_matrix,
    regression_emission,
    regression_keys,
    row_offset,
)
from ember.models.parts.plates import data_plate, mixture_weights
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["regression_mixture"]


def regression_mixture(
    y: Tensor,
    X: Tensor | None,
    components: int,
    *,
    family: str = "gaussian",
    scale: str = "free",
    intercept: bool = True,
    offset: Tensor | Sequence[float] | None = None,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Responses that follow one of K regressions on the same covariates.

    Equations, with the line :math:`l_{nk}` = `X_n @ coefficients_k + offset_n`::

        weights         ~ Dirichlet(concentration)
        coefficients_k  ~ Normal(mean, covariance)
        assignment_n    ~ Categorical(weights)          z = assignment_n
        y_n             ~ Normal(l_nz, 1 / sqrt(precisions_z))      family="gaussian"
        y_n             ~ Poisson(exp(l_nz))                        family="poisson"
        y_n             ~ Bernoulli(1 / (1 + exp(-l_nz)))           family="logistic"

    Gaussian noise has `precisions_k ~ Gamma(df / 2, scale / 2)`, one for each component or, with
    `scale="tied"`, one for all. With one component these are the ordinary regressions.

    ================= ===================== ======================================================
    key of `prior`    shape it broadcasts to default
    ================= ===================== ======================================================
    `"concentration"` (K,)                  2: one row for each component, none is emptied
    `"mean"`          (K, F)                the line without slopes at the mean of `y` (the height
                                            of its link); 0 beside a `deviation` of your own
    `"deviation"`     (K, F)                of independent coefficients; see below unless given
    `"df"`            (K,); tied ()         3, as in `gaussian_mixture` with one column
    `"scale"`         (K,); tied ()         the variance that a single regression leaves, over K^2
    ================= ===================== ======================================================

    The default covariance is Zellner's: the height of the line at the means of the covariates, and
    what one standard deviation of any combination of them changes, are independent and have ten
    standard deviations of `y` (ten units of the line for the other families). So the prior is weak
    wherever the data lie, in any units, and however the covariates move together.

    A column of ones, if `intercept`, stands before the columns of `X` and counts in F. Lines that
    cross look like one cloud to a clustering of `y`, so try several starts: `EM(..., restarts=20)`.

    Args:
        y: the responses (N,): floating; counts; or 0 and 1.
        X: the covariates (N, F), or (N,) for a single one; None for an intercept alone.
        components: the number K of components.
        family: `"gaussian"`, `"poisson"` or `"logistic"`.
        scale: `"free"`, or `"tied"` for the same noise around all lines (Gaussian only).
        intercept: whether each component has an intercept.
        offset: a known term of each row's line (N,), such as the logarithm of its exposure.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `y` or `X` is no tensor, `components` no integer, or `prior` no mapping.
        ValueError: if shapes differ, values are not finite or do not suit the family, there are
            fewer than two rows or fewer than `components`; if an option or a key of `prior` is
            unknown, or a hyperparameter or frequency outside its domain.

    References:
        A. Zellner (1986). On assessing prior distributions and Bayesian regression analysis with
        g-prior distributions. In Bayesian Inference and Decision Techniques, 233-243.
        R. E. Quandt and J. B. Ramsey (1978). Estimating mixtures of normal distributions and
        switching regressions. Journal of the American Statistical Association 73, 730-738.
        M. Wedel and W. S. DeSarbo (1995). A mixture likelihood approach for generalized linear
        models. Journal of Classification 12, 21-55.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> X = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
        >>> y = torch.tensor([0.1, 4.8, 2.1, 2.2, 3.9])
        >>> trace = poutine.trace(regression_mixture).get_trace(y, X, 2)
        >>> for name in ("weights", "coefficients", "precisions", "assignment", "y"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        weights (2,)
        coefficients (2, 2)
        precisions (2,)
        assignment (5,)
        y (5,)
    """
    check_family(family, scale)
    y = check_response(y, family)
    check_size(components, "components")
    design = design_matrix(X, y, intercept)
    offset = row_offset(offset, y)
    hyper = Hyperparameters(prior, ("concentration", *regression_keys(family)), y)
    with called("y"):
        counts = row_frequency(frequency, y)
        check_enough(float(counts.sum()), components, "components")

    weights = mixture_weights(components, hyper)
    plate = pyro.plate("components", components)
    emission = regression_emission(
        y, design, offset, counts, components, family, scale, hyper, plate
    )
    with data_plate(len(y), None if frequency is None else counts):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("y", emission(assignment), obs=y)
