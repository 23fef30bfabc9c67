"""Linear Gaussian state space models: a hidden path that moves by Gaussian steps.

level_variance, slope_variance           variance
        |                                    |
        v                                    v
level_0 ---> level_1 ---> ...    y_t ~ level_t        (each step a site)
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.checks import check_enough, check_floats, check_size, check_tensor
from ember.models.parts.design import WEAK, called
from ember.models.parts.factors import FACTOR_KEYS, loadings_site, locs_site, noise_site
from ember.models.parts.gaussian_chains import check_series, columns_of_series, observe_chain
from ember.models.parts.gaussian_latents import gaussian_latent, variance_site
from ember.models.parts.missing import observe, shown_entries
from ember.models.parts.priors import Hyperparameters, Prior, default_variance

__all__ = ["linear_gaussian_state_space", "local_level", "local_linear_trend"]

LEVEL_KEYS = ("df", "scale", "level_df", "level_scale", "initial_mean", "initial_deviation")
SLOPE_KEYS = ("slope_df", "slope_scale", "initial_slope_mean", "initial_slope_deviation")


def local_level(y: Tensor, *, prior: Prior | None = None) -> None:
    """A level that wanders, seen with noise: exponential smoothing as a model.

    Equations::

        variance       ~ InverseGamma(df / 2, scale / 2)
        level_variance ~ InverseGamma(level_df / 2, level_scale / 2)
        level_0        ~ Normal(initial_mean, initial_deviation)
        level_t        ~ Normal(level_[t-1], sqrt(level_variance))
        y_t            ~ Normal(level_t, sqrt(variance))

    Each step is a site of its own, `level_0` and `y_0` to `level_[T-1]` and `y_[T-1]`, so this is
    for series of up to a few hundred steps.

    ======================= =======================================================================
    key of `prior`          default, each a number
    ======================= =======================================================================
    `"df"`, `"level_df"`    3: the mode is a fifth of the scale
    `"scale"`,              half the variance of the differences of successive observations
    `"level_scale"`
    `"initial_mean"`        the mean of `y`
    `"initial_deviation"`   ten standard deviations of `y`
    ======================= =======================================================================

    NaN stands for a step that was not observed; the level moves on through it.

    Args:
        y: the series (T,), floating, NaN where missing; its dtype is that of all parameters.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `y` is not a floating tensor or `prior` no mapping.
        ValueError: if `y` is not (T,), is empty or infinite, has fewer than two observations, or is
            constant; if a key of `prior` is unknown or a hyperparameter outside its domain.

    References:
        J. Durbin and S. J. Koopman (2012). Time Series Analysis by State Space Methods, 2nd
        edition. Oxford, chapter 2.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> y = torch.tensor([1120.0, 1160.0, torch.nan, 1210.0])
        >>> trace = poutine.trace(local_level).get_trace(y)
        >>> [name for name in trace.nodes if name.startswith("level_")]
        ['level_variance', 'level_0', 'level_1', 'level_2', 'level_3']
    """
    y = _check_series(y)
    hyper = Hyperparameters(prior, LEVEL_KEYS, y)
    scale, deviation = _usual(y)

    noise = variance_site("variance", hyper, ("df", "scale"), scale).sqrt()
    step = variance_site("level_variance", hyper, ("level_df", "level_scale"), scale).sqrt()
    shown = shown_entries(y)
    location = hyper.real("initial_mean", (), lambda: y.nanmean())
    spread = hyper.above("initial_deviation", (), lambda: WEAK * deviation)
    for t in pyro.markov(range(len(y))):
        level = gaussian_latent(f"level_{t}", dist.Normal(location, spread))
        observe(f"y_{t}", dist.Normal(level, noise), y[t], None if shown is None else shown[t])
        location, spread = level, step


def local_linear_trend(y: Tensor, *, prior: Prior | None = None) -> None:
    """A level that grows by a slope, both of which wander, seen with noise.

    Equations::

        variance       ~ InverseGamma(df / 2, scale / 2)
        level_variance ~ InverseGamma(level_df / 2, level_scale / 2)
        slope_variance ~ InverseGamma(slope_df / 2, slope_scale / 2)
        level_0        ~ Normal(initial_mean, initial_deviation)
        slope_0        ~ Normal(initial_slope_mean, initial_slope_deviation)
        level_t        ~ Normal(level_[t-1] + slope_[t-1], sqrt(level_variance))
        slope_t        ~ Normal(slope_[t-1], sqrt(slope_variance))
        y_t            ~ Normal(level_t, sqrt(variance))

    Each step is a site of its own, as in `local_level`, whose hyperparameters it has too.

    ============================= =================================================================
    further key of `prior`        default, each a number
    ============================= =================================================================
    `"slope_df"`                  3: the mode is a fifth of the scale
    `"slope_scale"`               half the variance of the differences of successive observations
    `"initial_slope_mean"`        0
    `"initial_slope_deviation"`   ten standard deviations of `y`
    ============================= =================================================================

    NaN stands for a step that was not observed; level and slope move on through it.

    Args:
        y: the series (T,), floating, NaN where missing; its dtype is that of all parameters.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `y` is not a floating tensor or `prior` no mapping.
        ValueError: as `local_level`.

    References:
        J. Durbin and S. J. Koopman (2012). Time Series Analysis by State Space Methods, 2nd
        edition. Oxford, section 3.2.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> y = torch.tensor([1.0, 2.1, torch.nan, 3.8])
        >>> trace = poutine.trace(local_linear_trend).get_trace(y)
        >>> [name for name in trace.nodes if name.startswith("slope_")]
        ['slope_variance', 'slope_0', 'slope_1', 'slope_2', 'slope_3']
    """
    y = _check_series(y)
    hyper = Hyperparameters(prior, (*LEVEL_KEYS, *SLOPE_KEYS), y)
    scale, deviation = _usual(y)

    noise = variance_site("variance", hyper, ("df", "scale"), scale).sqrt()
    step = variance_site("level_variance", hyper, ("level_df", "level_scale"), scale).sqrt()
    turn = variance_site("slope_variance", hyper, ("slope_df", "slope_scale"), scale).sqrt()
    shown = shown_entries(y)
    location = hyper.real("initial_mean", (), lambda: y.nanmean())
    spread = hyper.above("initial_deviation", (), lambda: WEAK * deviation)
    direction = hyper.real("initial_slope_mean", (), 0.0)
    bend = hyper.above("initial_slope_deviation", (), lambda: WEAK * deviation)
    for t in pyro.markov(range(len(y))):
        level = gaussian_latent(f"level_{t}", dist.Normal(location, spread))
        slope = gaussian_latent(f"slope_{t}", dist.Normal(direction, bend))
        observe(f"y_{t}", dist.Normal(level, noise), y[t], None if shown is None else shown[t])
        location, spread = level + slope, step
        direction, bend = slope, turn


def linear_gaussian_state_space(y: Tensor, states: int, *, prior: Prior | None = None) -> None:
    """Series driven by a few hidden numbers that move linearly: a dynamic factor model.

    Equations, the state :math:`s_0` before the first step being standard normal::

        transition_matrix ~ Normal(transition_mean, transition_deviation)    each entry
        loadings_dk       ~ Normal(0, loading_d)
        locs_d            ~ Normal(mean_d, deviation_d)
        uniquenesses_d    ~ InverseGamma(df / 2, scale_d / 2)
        s_t               ~ Normal(transition_matrix @ s_[t-1], 1)           q states
        y_td              ~ Normal(locs_d + loadings_d @ s_t, sqrt(uniquenesses_d))

    The steps of the state have the identity as covariance, which fixes the units of the states;
    they are known up to a rotation. The states are summed out inside the site `y`, a
    `GaussianHMM`, which EM opens into them: `posterior("state")` tells what they were.

    ========================= ======================= =============================================
    key of `prior`            shape it broadcasts to  default
    ========================= ======================= =============================================
    `"transition_mean"`       (q, q)                  0
    `"transition_deviation"`  (q, q)                  1
    `"loading"`               (D, q)                  the standard deviation of the column
    `"mean"`                  (D,)                    the mean of the column
    `"deviation"`             (D,)                    ten standard deviations of the column
    `"df"`                    (D,)                    3: the mode is a fifth of `scale`
    `"scale"`                 (D,)                    the variance of the column
    ========================= ======================= =============================================

    Args:
        y: the series (T, D), or several of them (N, T, D), floating, NaN where missing; its dtype
            is that of all parameters.
        states: the number q of states, of any size.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `y` is not a floating tensor, `states` no integer or `prior` no mapping.
        ValueError: if `y` is not (T, D) or (N, T, D), is empty or infinite, has fewer than two
            steps, or a constant column; if a key of `prior` is unknown or a hyperparameter outside
            its domain.

    References:
        R. H. Shumway and D. S. Stoffer (1982). An approach to time series smoothing and forecasting
        using the EM algorithm. Journal of Time Series Analysis 3, 253-264.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> y = torch.randn(6, 3)
        >>> trace = poutine.trace(linear_gaussian_state_space).get_trace(y, 2)
        >>> for name in ("transition_matrix", "loadings", "locs", "uniquenesses", "y"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        transition_matrix (2, 2)
        loadings (3, 2)
        locs (3,)
        uniquenesses (3,)
        y (6, 3)
    """
    y = check_series(y)
    check_size(states, "states")
    keys = ("transition_mean", "transition_deviation", *FACTOR_KEYS)
    hyper = Hyperparameters(prior, keys, y)
    columns = columns_of_series(y, hyper.covers("loading", "deviation", "scale"))

    square = (states, states)
    mean = hyper.real("transition_mean", square, 0.0)
    deviation = hyper.above("transition_deviation", square, 1.0)
    transition = pyro.sample("transition_matrix", dist.Normal(mean, deviation).to_event(2))
    loadings = loadings_site(columns, (), states, hyper)
    locs = locs_site(columns, (), hyper)
    uniquenesses = noise_site("uniquenesses", columns.variance, hyper, 1)
    observe_chain(y, transition, loadings, locs, uniquenesses)


def _check_series(y: object) -> Tensor:
    with called("y"):
        y = check_tensor(y, {1: "(T,)"}, "several series are several fits")
        check_floats(y, gaps=True)
        check_enough(float((~y.isnan()).sum()), 1, "steps")
    return y


def _usual(y: Tensor) -> tuple[Tensor, Tensor]:
    """Half the variance of the differences of successive observations; the deviation of all."""
    seen = y[~y.isnan()]
    with called("y"):
        deviation = default_variance(seen.unsqueeze(-1), torch.ones_like(seen), 1)[0].sqrt()
    steps = seen.diff()
    varied = (steps - steps.mean()).square().mean() / 2.0
    # Of a straight line the differences are all the same.
    return torch.maximum(varied, 1e-4 * deviation.square()), deviation
