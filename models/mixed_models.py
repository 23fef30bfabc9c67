"""Linear mixed models: effects that all rows share, and effects of the groups that rows are in.

coefficients (F)    variance      <name>_variance(s) | <name>_precision
      |                 |                   |
      |                 |         <name>_effects (G, K)      (plate "<name>_levels")
      v                 v                   |
      +------------> y (N) <----------------+                (plate "data")
"""

from collections.abc import Mapping, Sequence

import pyro.distributions as dist
from torch import Tensor

from ember.models.parts.design import check_response, design_matrix
from ember.models.parts.gaussian_latents import Line, coefficients_of_line, variance_site
from ember.models.parts.grouping import Groups, grouping_factors
from ember.models.parts.missing import observe
from ember.models.parts.plates import data_plate
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["linear_mixed_model"]


def linear_mixed_model(
    y: Tensor,
    X: Tensor | None = None,
    *,
    groups: Groups,
    design: Tensor | Mapping[str, Tensor] | None = None,
    correlated: bool = True,
    intercept: bool = True,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Responses with a line that all share, and Gaussian effects of the groups that they are in.

    Equations, for one grouping factor with the random-effects design :math:`Z`, `g` the level of
    row n::

        coefficients    ~ Normal(mean, covariance)
        variance        ~ InverseGamma(df / 2, scale / 2)
        group_effects_g ~ Normal(0, covariance of the effects)
        y_n             ~ Normal(X_n @ coefficients + Z_n @ group_effects_g, sqrt(variance))

    ========================== ======================= =======================================
    effects of a level         site and its shape      prior
    ========================== ======================= =======================================
    one, without a `design`    `<name>_variance` ()    InverseGamma(df / 2, scale / 2)
    K, `correlated=True`       `<name>_precision`      Wishart(df, inverse(scale)) of the
                               (K, K)                  inverse of their covariance
    K, `correlated=False`      `<name>_variances` (K,) InverseGamma(df / 2, scale / 2) each
    ========================== ======================= =======================================

    A single grouping factor is called `group`. Several, crossed or nested, are told by name:
    `groups={"school": ..., "teacher": ...}`, with their own codes even where one lies within the
    other. The effects are the latent sites `<name>_effects`, (G,) or (G, K); a level without rows
    has its prior. Each factor adds its term to the line.

    ================= ===================== ======================================================
    key of `prior`    shape it broadcasts to default
    ================= ===================== ======================================================
    `"mean"`          (F,)                  the line without slopes at the mean of `y`; 0 beside a
                                            `deviation` of your own
    `"deviation"`     (F,)                  of independent coefficients; see `regression_mixture`
                                            for the weak covariance unless given
    `"df"`            ()                    3: the mode is a fifth of `scale`
    `"scale"`         ()                    the variance that the line alone leaves
    `"<name>_df"`     () or (K,)            3; K + 2 of a Wishart
    `"<name>_scale"`  () or (K,); (K, K)    the variance that the line alone leaves, over that of
                                            the column of the design (of a constant one: its
                                            square); of a Wishart the same for the design's
                                            columns together, whatever their units and origin
    ================= ===================== ======================================================

    NaN in `y` stands for a response that is missing at random, and drops out.

    Args:
        y: the responses (N,), floating, NaN where missing; its dtype is that of all parameters.
        X: the covariates (N, F), or (N,) for a single one; None for an intercept alone.
        groups: the level of each row (N,), coded 0, 1, ..., G - 1; or several such by name.
        design: what multiplies the effects (N, K), taken as it is: a column of ones is a random
            intercept, which is all there is unless given. By name where `groups` are.
        correlated: whether the K effects of a level are correlated.
        intercept: whether a column of ones stands before the columns of `X`; it counts in F.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `y`, `X`, a grouping factor or a design is no tensor, or `prior` no mapping.
        ValueError: if shapes differ, values are not finite, codes are not 0, 1, ..., there are
            fewer than two responses, or they are all the same; if `design` or `prior` names what
            there is not, or a hyperparameter or frequency is outside its domain.

    References:
        N. M. Laird and J. H. Ware (1982). Random-effects models for longitudinal data. Biometrics
        38, 963-974.
        D. Bates, M. Maechler, B. Bolker and S. Walker (2015). Fitting linear mixed-effects models
        using lme4. Journal of Statistical Software 67(1).

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> y = torch.tensor([1.0, 2.1, 2.9, 3.2, 1.5, 2.4])
        >>> day = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])
        >>> design = torch.stack([torch.ones(6), day], -1)
        >>> subject = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> trace = poutine.trace(linear_mixed_model).get_trace(
        ...     y, day, groups={"subject": subject}, design={"subject": design})
        >>> for name in ("coefficients", "variance", "subject_precision", "subject_effects", "y"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        coefficients (2,)
        variance ()
        subject_precision (2, 2)
        subject_effects (2, 2)
        y (6,)
    """
    y = check_response(y, "gaussian", gaps=True)
    fixed = design_matrix(X, y, intercept)
    factors = grouping_factors(groups, design, y)
    keys = [key for factor in factors for key in factor.hyperparameters]
    hyper = Hyperparameters(prior, ("mean", "deviation", "df", "scale", *keys), y)
    line = Line.of(y, fixed, frequency)

    coefficients = coefficients_of_line(line, hyper)
    variance = variance_site("variance", hyper, ("df", "scale"), line.left)
    location = (fixed * coefficients).sum(-1)
    for factor in factors:
        location = location + factor.effects(line, correlated, hyper)
    with data_plate(len(y), None if frequency is None else line.weights):
        observe("y", dist.Normal(location, variance.sqrt()), y, line.shown)
