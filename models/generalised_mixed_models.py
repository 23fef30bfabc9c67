"""Generalised linear mixed models: counts, and yes or no, that differ from group to group.

coefficients (F)    <name>_variance(s) | <name>_precision
      |                        |
      |             <name>_effects (G, K)      (plate "<name>_levels")
      v                        v
      +-------> y (N) <--------+                (plate "data")
"""

from collections.abc import Mapping, Sequence
from typing import cast

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ember.models.parts.checks import check_counts, check_option, check_tensor
from ember.models.parts.design import (
    called,
    check_response,
    design_matrix,
    row_offset,
    usual_height,
)
from ember.models.parts.gaussian_latents import Line, LinkLine, coefficients_of_line
from ember.models.parts.grouping import Groups, grouping_factors
from ember.models.parts.missing import observe
from ember.models.parts.plates import data_plate
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["generalised_linear_mixed_model"]

FAMILIES = ("logistic", "binomial", "poisson")


def generalised_linear_mixed_model(
    y: Tensor,
    X: Tensor | None = None,
    *,
    groups: Groups,
    family: str = "logistic",
    design: Tensor | Mapping[str, Tensor] | None = None,
    correlated: bool = True,
    intercept: bool = True,
    trials: Tensor | Sequence[float] | None = None,
    offset: Tensor | Sequence[float] | None = None,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Counts, or answers yes or no, with a line that all share and effects of their groups.

    Equations, with the random-effects design :math:`Z` and `g` the level of row n::

        coefficients    ~ Normal(mean, covariance)
        group_effects_g ~ Normal(0, covariance of the effects)
        line_n          = X_n @ coefficients + Z_n @ group_effects_g + offset_n
        y_n             ~ Bernoulli(sigmoid(line_n))               (family="logistic")
        y_n             ~ Binomial(trials_n, sigmoid(line_n))      (family="binomial")
        y_n             ~ Poisson(exp(line_n))                     (family="poisson")

    ========================== ======================= =======================================
    effects of a level         site and its shape      prior
    ========================== ======================= =======================================
    one, without a `design`    `<name>_variance` ()    InverseGamma(df / 2, scale / 2)
    K, `correlated=True`       `<name>_precision`      Wishart(df, inverse(scale)) of the
                               (K, K)                  inverse of their covariance
    K, `correlated=False`      `<name>_variances` (K,) InverseGamma(df / 2, scale / 2) each
    ========================== ======================= =======================================

    There is one grouping factor, called `group`; `groups={"school": ...}` calls it otherwise. The
    effects are the latent site `<name>_effects`, (G,) or (G, K), which is integrated on nodes at
    the mode and curvature of each level (`integrate="quadrature"`); a level without rows has its
    prior. Coefficients are those of a row whose effects are zero.

    ================= ===================== ======================================================
    key of `prior`    shape it broadcasts to default
    ================= ===================== ======================================================
    `"mean"`          (F,)                  the line without slopes at the mean of `y`; 0 beside a
                                            `deviation` of your own
    `"deviation"`     (F,)                  of independent coefficients; ten units of the line
                                            unless given, see `regression_mixture`
    `"<name>_df"`     () or (K,)            3: the mode is a fifth of `scale`; K + 2 of a Wishart
    `"<name>_scale"`  () or (K,); (K, K)    1 over the variance of the column of the design (of a
                                            constant one: its square); of a Wishart the same for
                                            the design's columns together
    ================= ===================== ======================================================

    NaN in `y` stands for a response that is missing at random, and drops out.

    Args:
        y: the responses (N,): 0 and 1; numbers of successes; or counts. NaN where missing.
        X: the covariates (N, F), or (N,) for a single one; None for an intercept alone.
        groups: the level of each row (N,), coded 0, 1, ..., G - 1; or a mapping that names it.
        family: `"logistic"`, `"binomial"` or `"poisson"`.
        design: what multiplies the effects (N, K), taken as it is: a column of ones is a random
            intercept, which is all there is unless given. By name where `groups` is.
        correlated: whether the K effects of a level are correlated.
        intercept: whether a column of ones stands before the columns of `X`; it counts in F.
        trials: of a binomial, how many trials each row has (N,).
        offset: a known term of each row's line (N,), such as the logarithm of its exposure.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `y`, `X`, a grouping factor or a design is no tensor, or `prior` no mapping.
        ValueError: if shapes differ, values are not finite or do not suit the family, codes are
            not 0, 1, ..., there are fewer than two responses or several grouping factors; if
            `design` or `prior` names what there is not, or a hyperparameter, a number of trials or
            a frequency is outside its domain.

    References:
        N. E. Breslow and D. G. Clayton (1993). Approximate inference in generalized linear mixed
        models. Journal of the American Statistical Association 88, 9-25.
        D. Bates, M. Maechler, B. Bolker and S. Walker (2015). Fitting linear mixed-effects models
        using lme4. Journal of Statistical Software 67(1).

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> seizures = torch.tensor([5.0, 3.0, 0.0, 11.0, 14.0, 9.0])
        >>> treated = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
        >>> patient = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> trace = poutine.trace(generalised_linear_mixed_model).get_trace(
        ...     seizures, treated, groups={"patient": patient}, family="poisson")
        >>> for name in ("coefficients", "patient_variance", "patient_effects", "y"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        coefficients (2,)
        patient_variance ()
        patient_effects (3,)
        y (6,)
    """
    check_option(family, "family", FAMILIES)
    y = check_response(y, family, gaps=True)
    count = _trials(trials, y, family)
    fixed, known = design_matrix(X, y, intercept), row_offset(offset, y)
    factors = grouping_factors(groups, design, y)
    if len(factors) > 1:
        raise ValueError(
            f"`groups` has {len(factors)} grouping factors, but the effects of one alone can be "
            "integrated here: pass a single one (`linear_mixed_model` takes several)."
        )
    keys = [key for factor in factors for key in factor.hyperparameters]
    hyper = Hyperparameters(prior, ("mean", "deviation", *keys), y)
    line = LinkLine.of(y, fixed, frequency)

    usual = _usual_height(line, line.kept(known), line.kept(count), family)
    predictor = (fixed * coefficients_of_line(line, hyper, usual)).sum(-1) + known
    for factor in factors:
        predictor = predictor + factor.effects(line, correlated, hyper, "quadrature")
    with data_plate(len(y), None if frequency is None else line.weights):
        observe("y", _response(predictor, count, family), y, line.shown)


def _trials(trials: Tensor | Sequence[float] | None, y: Tensor, family: str) -> Tensor:
    """How many trials each row has (N,): one, unless binomial."""
    if family != "binomial":
        if trials is not None:
            raise ValueError(
                f"`trials` is about family='binomial', not family={family!r}: leave it out."
            )
        return torch.ones_like(y)
    if trials is None:
        raise ValueError("family='binomial' needs `trials`, how many trials each row has.")
    with called("trials"):
        given = check_tensor(torch.as_tensor(trials), {1: "(N,)"})
        check_counts(given)
    if given.shape != y.shape:
        raise ValueError(
            f"`trials` must have shape ({len(y)},), one number for each row of `y`, not "
            f"{tuple(given.shape)}."
        )
    if bool((y > given).any()):
        raise ValueError("`y` has more successes than `trials` in some row: correct the data.")
    return given.to(y)


def _usual_height(
    line: Line, offset: Tensor, trials: Tensor, family: str
) -> tuple[Tensor, Tensor | float]:
    """The height of the line without covariates, and a unit of it."""
    if family != "binomial":
        return usual_height(line.y, offset, line.design, line.frequency, family)
    total = line.frequency @ trials
    share = (line.frequency @ line.y + 0.5) / (total + 1.0)
    return torch.logit(share) - line.frequency @ (trials * offset) / total.clamp_min(1.0), 1.0


def _response(predictor: Tensor, trials: Tensor, family: str) -> TorchDistribution:
    """The distribution of the responses."""
    if family == "poisson":
        return cast(TorchDistribution, dist.Poisson(predictor.exp()))
    if family == "binomial":
        return cast(TorchDistribution, dist.Binomial(trials, logits=predictor))
    return cast(TorchDistribution, dist.Bernoulli(logits=predictor))
