r"""Growth curves: a nonlinear curve for each subject, whose parameters are normal over subjects.

population (3)   precision (3, 3)
         \        /
       curves (G, 3)     variance          (plate "subjects")
             |            |
             +--> y (N) <-+                (plate "data")
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.checks import (
    check_codes,
    check_enough,
    check_finite,
    check_option,
    check_tensor,
    row_frequency,
)
from ember.models.parts.design import called, check_response
from ember.models.parts.emissions import Wishart, select
from ember.models.parts.gaussian_latents import gaussian_latent, variance_site
from ember.models.parts.missing import observe, shown_entries
from ember.models.parts.plates import data_plate
from ember.models.parts.priors import Hyperparameters, Prior, weighted_mean

__all__ = ["growth_curves"]

SHAPES = ("logistic", "gompertz")
WEAK = 10.0  # standard deviations of the prior of the population's curve, in units of the data
APART = 0.3  # a usual deviation of subjects, in the same units


def growth_curves(
    y: Tensor,
    times: Tensor,
    *,
    subjects: Tensor,
    shape: str = "logistic",
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    r"""Measurements along curves that level off, with three parameters of each subject.

    Equations, `g` the subject of row n::

        population ~ Normal(mean, deviation)
        precision  ~ Wishart(df, inverse(scale))
        variance   ~ InverseGamma(noise_df / 2, noise_scale / 2)
        curves_g   ~ Normal(population, inverse(precision))
        y_n        ~ Normal(f(times_n; curves_g), sqrt(variance))

        f(t; a, m, s) = a / (1 + exp(-(t - m) exp(-s)))            (shape="logistic")
        f(t; a, m, s) = a exp(-exp(-(t - m) exp(-s)))              (shape="gompertz")

    with the height :math:`a` at which a curve levels off, the time :math:`m` at which it is
    steepest, and the logarithm :math:`s` of how long it takes. The `curves` (G, 3) are latent and
    nonlinear in the data; they are integrated on nodes at the mode and curvature of each subject
    (`integrate="quadrature"`), or by Monte Carlo if asked for.

    =============== ================= ============================================================
    key of `prior`  shape             default
    =============== ================= ============================================================
    `"mean"`        (3,)              the largest `y`; the mean of the times; the logarithm of half
                                      their deviation
    `"deviation"`   (3,)              ten times the deviations of `y` and of the times; 10
    `"df"`          ()                5
    `"scale"`       (3, 3)            diagonal: 0.09 times the squares of the same deviations; 0.09
    `"noise_df"`    ()                3: the mode is a fifth of `noise_scale`
    `"noise_scale"` ()                a hundredth of the variance of `y`
    =============== ================= ============================================================

    Args:
        y: the measurements (N,), floating, NaN where missing.
        times: when they were made (N,).
        subjects: whose each of them is (N,), coded 0, 1, ..., G - 1.
        shape: `"logistic"` or `"gompertz"`.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `y`, `times` or `subjects` is no tensor, or `prior` no mapping.
        ValueError: if shapes differ, values are not finite, codes are not 0, 1, ..., times are all
            the same or there are fewer than two rows; if a key of `prior` is unknown, or a
            hyperparameter or frequency outside its domain.

    Reference:
        M. J. Lindstrom and D. M. Bates (1990). Nonlinear mixed effects models for repeated measures
        data. Biometrics 46, 673-687.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> days = torch.tensor([1.0, 4.0, 7.0, 1.0, 4.0, 7.0])
        >>> height = torch.tensor([0.9, 5.2, 9.0, 1.2, 6.1, 9.9])
        >>> plant = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> trace = poutine.trace(growth_curves).get_trace(height, days, subjects=plant)
        >>> for name in ("population", "precision", "variance", "curves", "y"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        population (3,)
        precision (3, 3)
        variance ()
        curves (2, 3)
        y (6,)
    """
    check_option(shape, "shape", SHAPES)
    y = check_response(y, "gaussian", gaps=True)
    times, codes = _of_rows(times, "times", y).to(y), _codes(subjects, y)
    keys = ("mean", "deviation", "df", "scale", "noise_df", "noise_scale")
    hyper = Hyperparameters(prior, keys, y)
    shown = shown_entries(y)
    with called("y"):
        weights = row_frequency(frequency, y)
        kept = slice(None) if shown is None else shown
        check_enough(float(weights[kept].sum()), 1, "rows")

    mean, unit = _usual(y[kept], times[kept], weights[kept])
    centre = hyper.real("mean", (3,), lambda: mean)
    spread = hyper.above("deviation", (3,), lambda: WEAK * unit)
    population = pyro.sample("population", dist.Normal(centre, spread).to_event(1))
    df = hyper.above("df", (), 5.0, bound=2.0)
    scale = hyper.positive_definite("scale", (3, 3), lambda: torch.diag((APART * unit).square()))
    precision = pyro.sample("precision", Wishart(df, precision_matrix=scale))
    noise = (0.1 * unit[0]).square()
    variance = variance_site("variance", hyper, ("noise_df", "noise_scale"), noise)
    with pyro.plate("subjects", int(codes.max()) + 1):
        normal = dist.MultivariateNormal(population, precision_matrix=precision)
        curves = gaussian_latent("curves", normal, "quadrature")
    expected = _curve(times, select(curves, codes, 1), shape)
    with data_plate(len(y), None if frequency is None else weights):
        observe("y", dist.Normal(expected, variance.sqrt()), y, shown)


def _of_rows(given: object, name: str, y: Tensor) -> Tensor:
    with called(name):
        rows = check_tensor(given, {1: "(N,)"})
        check_finite(rows)
    if len(rows) != len(y):
        raise ValueError(f"`{name}` has {len(rows)} row(s) but `y` has {len(y)}: pass one each.")
    return rows


def _codes(given: object, y: Tensor) -> Tensor:
    codes = _of_rows(given, "subjects", y)
    with called("subjects"):
        check_codes(codes)
    return codes.long()


def _usual(y: Tensor, times: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The curve (3,) at which a search may begin, and what counts as a unit of each parameter."""
    own = weights > 0
    middle = weighted_mean(times, weights)
    length = weighted_mean((times - middle).square(), weights).sqrt()
    height = weighted_mean((y - weighted_mean(y, weights)).square(), weights).sqrt()
    if not bool(length > 0) or not bool(height > 0):
        raise ValueError(
            "`times` or `y` are all the same: a curve needs measurements at different times."
        )
    mean = torch.stack([y[own].max(), middle, (length / 2.0).log()])
    return mean, torch.stack([height, length, torch.ones_like(length)])


def _curve(times: Tensor, curves: Tensor, shape: str) -> Tensor:
    """The height of each row's own curve at its time."""
    height, middle, log_length = curves.unbind(-1)
    passed = (times - middle) * torch.exp(-log_length)
    if shape == "logistic":
        return height * torch.sigmoid(passed)
    return height * torch.exp(-torch.exp(-passed))
