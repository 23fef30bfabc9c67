"""Ordered responses: a latent line that passes thresholds, probit link, effects of groups.

coefficients (F)    threshold, steps (L - 2)    group_variance
      |                    |                          |
      |                    |                  group_effects (G)    (plate "group_levels")
      v                    v                          |
      +-----------------> y (N) <---------------------+            (plate "data")
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.checks import check_codes, check_size, check_tensor, parameter_dtype
from ember.models.parts.design import called, design_matrix
from ember.models.parts.gaussian_latents import LinkLine, coefficients_of_line
from ember.models.parts.grouping import Groups, grouping_factors
from ember.models.parts.missing import observe
from ember.models.parts.moments import moments
from ember.models.parts.plates import data_plate
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["ordinal_probit"]


def ordinal_probit(
    y: Tensor,
    X: Tensor | None = None,
    *,
    groups: Groups | None = None,
    levels: int | None = None,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    r"""Ordered levels 0, 1, ..., L - 1 by which thresholds a line with normal noise has passed.

    Equations, `g` the level of the grouping factor in row n::

        coefficients  ~ Normal(0, covariance)
        threshold     ~ Normal(0, threshold_scale^2)
        step_k        ~ Gamma(step_shape, step_rate)                   k = 1, ..., L - 2
        thresholds    = threshold, threshold + step_1, ...             at the mean of X
        group_effects_g ~ Normal(0, group_variance)                    with `groups`
        line_n        = X_n @ coefficients + group_effects_g
        P(y_n <= k)   = Phi(thresholds_k - line_n)

    There is no intercept: the thresholds are in its place. The deterministic site `thresholds`
    (L - 1) has them where all covariates are zero; `threshold` is the first of them at the means
    of the covariates. The effects of groups are integrated on nodes at mode and curvature.

    =================== ===================== ====================================================
    key of `prior`      shape it broadcasts to default
    =================== ===================== ====================================================
    `"mean"`            (F,)                  0
    `"deviation"`       (F,)                  of independent coefficients; ten units of the line
                                              for a standard deviation of any combination of
                                              covariates unless given, see `regression_mixture`
    `"threshold_scale"` ()                    10
    `"step_shape"`      (L - 2,)              1.5
    `"step_rate"`       (L - 2,)              0.1
    `"group_df"`        ()                    3: the mode is a fifth of `group_scale`
    `"group_scale"`     ()                    1
    =================== ===================== ====================================================

    Args:
        y: the levels (N,), coded 0, 1, ..., L - 1; NaN where missing.
        X: the covariates (N, F), or (N,) for a single one; none unless given.
        groups: the level of a grouping factor in each row (N,), or a mapping that names it.
        levels: how many levels there are, where the highest may not have been seen.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `y`, `X` or a grouping factor is no tensor, or `prior` no mapping.
        ValueError: if shapes differ, codes are not 0, 1, ..., there are fewer than two rows or
            levels, or several grouping factors; if a key of `prior` is unknown, or a
            hyperparameter or frequency outside its domain.

    References:
        J. Aitchison and S. D. Silvey (1957). The generalization of probit analysis to the case of
        multiple responses. Biometrika 44, 131-140.
        D. Hedeker and R. D. Gibbons (1994). A random-effects ordinal regression model for
        multilevel analysis. Biometrics 50, 933-944.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> pain = torch.tensor([0, 1, 1, 2, 2, 0])
        >>> dose = torch.tensor([3.0, 2.0, 1.0, 0.0, 1.0, 2.0])
        >>> patient = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> trace = poutine.trace(ordinal_probit).get_trace(pain, dose, groups=patient)
        >>> for name in ("coefficients", "threshold", "steps", "thresholds", "group_effects", "y"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        coefficients (1,)
        threshold ()
        steps (1,)
        thresholds (2,)
        group_effects (3,)
        y (6,)
    """
    with called("y"):
        y = check_tensor(y, {1: "(N,)"})
        check_codes(y, gaps=True)
    levels = _level_count(y, levels)
    codes = y.to(parameter_dtype(y))
    design = codes.new_zeros(len(y), 0) if X is None else design_matrix(X, codes, False)
    factors = [] if groups is None else grouping_factors(groups, None, codes)
    if len(factors) > 1:
        raise ValueError(
            f"`groups` has {len(factors)} grouping factors, but the effects of one alone can be "
            "integrated here: pass a single one."
        )
    keys = [key for factor in factors for key in factor.hyperparameters]
    own = ("mean", "deviation", "threshold_scale", "step_shape", "step_rate")
    hyper = Hyperparameters(prior, (*own, *keys), codes)
    line = LinkLine.of(codes, design, frequency)

    predictor, moved = torch.zeros_like(codes), codes.new_zeros(())
    if design.shape[1]:
        centre = moments(line.design, line.frequency).mean
        coefficients = coefficients_of_line(line.about(centre), hyper, (codes.new_zeros(()), 1.0))
        predictor, moved = (design - centre) @ coefficients, centre @ coefficients
    thresholds = _thresholds(levels, hyper)
    pyro.deterministic("thresholds", thresholds + moved)
    for factor in factors:
        predictor = predictor + factor.effects(line, True, hyper, "quadrature")
    logits = _log_probs(thresholds - predictor.unsqueeze(-1))
    with data_plate(len(y), None if frequency is None else line.weights):
        observe("y", dist.Categorical(logits=logits), codes, line.shown)


def _level_count(y: Tensor, levels: int | None) -> int:
    seen = int(y[~y.isnan()].max()) + 1 if y.is_floating_point() else int(y.max()) + 1
    count = max(seen, 2) if levels is None else check_size(levels, "levels")
    if count < 2:
        raise ValueError("`levels` must be at least 2: with a single one there is nothing to tell.")
    if seen > count:
        raise ValueError(f"`y` has the level {seen - 1}, but `levels={count}`: pass {seen}.")
    return count


def _thresholds(levels: int, hyper: Hyperparameters) -> Tensor:
    """Declare the thresholds (L - 1), in rising order."""
    scale = hyper.above("threshold_scale", (), 10.0)
    first: Tensor = pyro.sample("threshold", dist.Normal(torch.zeros_like(scale), scale))
    if levels == 2:
        return first.unsqueeze(-1)
    shape = hyper.above("step_shape", (levels - 2,), 1.5)
    rate = hyper.above("step_rate", (levels - 2,), 0.1)
    steps = pyro.sample("steps", dist.Gamma(shape, rate).to_event(1))
    return torch.cat([first.unsqueeze(-1), first + steps.cumsum(-1)], -1)


def _log_probs(limits: Tensor) -> Tensor:
    """Log probabilities (N, L) that a standard normal lies between limits (N, L - 1)."""
    below, above = limits[..., :-1], limits[..., 1:]
    # Where both lie far on one side, their mirror images keep the digits.
    flip = below + above > 0.0
    low, high = torch.where(flip, -above, below), torch.where(flip, -below, above)
    upper = torch.special.log_ndtr(high)
    gap = (torch.special.log_ndtr(low) - upper).clamp_max(-1e-300)
    between = upper + torch.log(-torch.expm1(gap))
    ends = torch.special.log_ndtr(limits[..., :1]), torch.special.log_ndtr(-limits[..., -1:])
    return torch.cat([ends[0], between, ends[1]], -1)
