"""What regressions share: the covariates as a design matrix, and weak priors of coefficients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ember.models.parts.checks import (
    check_counts,
    check_finite,
    check_floats,
    check_option,
    check_tensor,
    check_zeros_and_ones,
    parameter_dtype,
)
from ember.models.parts.emissions import Emission, beside, select
from ember.models.parts.moments import moments
from ember.models.parts.orthonormal_design import has_level, left_variance, orthonormal
from ember.models.parts.priors import Hyperparameters, default_variance, weighted_mean
from ember.models.parts.triangles import log_sum

__all__ = [
    "called",
    "check_family",
    "check_response",
    "coefficients_site",
    "design_matrix",
    "precisions_site",
    "regression_emission",
    "regression_keys",
    "row_offset",
    "stepwise_emission",
    "usual_height",
]

COEFFICIENT_KEYS = ("mean", "deviation")
FAMILIES = ("gaussian", "poisson", "logistic")
WEAK = 10.0  # standard deviations of the response for one standard deviation of a covariate


def regression_keys(family: str) -> tuple[str, ...]:
    """The hyperparameters that a family of regressions has."""
    return (*COEFFICIENT_KEYS, "df", "scale") if family == "gaussian" else COEFFICIENT_KEYS


@contextmanager
def called(name: str) -> Iterator[None]:
    """Let the checks, which speak of `x`, speak of an argument by its own name."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error).replace("`x`", f"`{name}`").replace(" x.", f" {name}.")
        raise type(error)(message) from None


def check_family(family: str, scale: str) -> None:
    """Refuse unknown families, and an option of the noise where there is none."""
    check_option(family, "family", FAMILIES)
    check_option(scale, "scale", ("free", "tied"))
    if family != "gaussian" and scale != "free":
        raise ValueError(
            f"`scale='{scale}'` is about Gaussian noise, which family='{family}' does not have: "
            "leave it out."
        )


def check_response(y: object, family: str, gaps: bool = False) -> Tensor:
    """Return the response (N,) if its values suit the family; with `gaps`, NaN where missing."""
    with called("y"):
        y = check_tensor(y, {1: "(N,)"}, "one response for each row: y.squeeze(-1) drops a dim")
        if family == "gaussian":
            check_floats(y, gaps)
        elif family in ("poisson", "binomial"):
            check_counts(y, gaps)
        else:
            check_zeros_and_ones(y, gaps)
    return y.to(parameter_dtype(y))


def design_matrix(X: object, y: Tensor, intercept: bool, name: str = "X") -> Tensor:
    """The covariates (N, F) in the response's dtype, a column of ones before them if asked for."""
    with called(name):
        if X is None and intercept:
            return torch.ones_like(y).unsqueeze(-1)
        X = check_tensor(X, {1: "(N,)", 2: "(N, F)"})
        check_finite(X)
    if len(X) != len(y):
        raise ValueError(
            f"`{name}` has {len(X)} row(s) but `y` has {len(y)}: pass one row of covariates for "
            "each response."
        )
    columns = X.reshape(len(X), -1).to(y)
    return torch.cat([torch.ones_like(columns[:, :1]), columns], 1) if intercept else columns


def row_offset(offset: Tensor | Sequence[float] | None, y: Tensor) -> Tensor:
    """A known term of each row's linear predictor (N,), zeros unless given."""
    if offset is None:
        return torch.zeros_like(y)
    with called("offset"):
        given = check_tensor(torch.as_tensor(offset), {1: "(N,)"})
        check_finite(given)
    if given.shape != y.shape:
        raise ValueError(
            f"`offset` must have shape ({len(y)},), one number for each row of `y`, "
            f"not {tuple(given.shape)}."
        )
    return given.to(y)


def coefficients_site(
    name: str,
    design: Tensor,
    frequency: Tensor,
    usual: tuple[Tensor | float, Tensor | float],
    components: int,
    prior: Hyperparameters,
    plate: pyro.plate,
    keys: tuple[str, str] = COEFFICIENT_KEYS,
) -> Tensor:
    """Declare the coefficients (K, F) of each component.

    With a standard deviation of the user's they are independent. The default is about a line at the
    usual height, and weak: WEAK units for the height of the line at the means of the covariates,
    and as much for what a standard deviation of any combination of them changes.

    Args:
        name: the site.
        design: the covariates (N, F).
        frequency: the weight of each row.
        usual: a height of the linear predictor, and what counts as a unit of it.
        components: K.
        prior: hyperparameters, of which `keys` are the mean and the standard deviation.
        plate: the plate of the components.
        keys: the names of the two hyperparameters.
    """
    shape = (components, design.shape[1])
    fn: TorchDistribution
    if prior.given.get(keys[1]) is not None:
        mean = prior.real(keys[0], shape, 0.0)
        fn = dist.Normal(mean, prior.above(keys[1], shape, 1.0)).to_event(1)
    else:
        height, unit = usual
        found = orthonormal(design, frequency)
        level = 0.0 if found.level is None else (height * found.level).to(design)
        mean = prior.real(keys[0], shape, lambda: torch.as_tensor(level).to(design))
        fn = dist.MultivariateNormal(mean, scale_tril=(WEAK * unit * found.factor()).to(design))
    with plate:
        coefficients: Tensor = pyro.sample(name, fn)
    return coefficients


def regression_emission(
    y: Tensor,
    design: Tensor,
    offset: Tensor,
    frequency: Tensor,
    components: int,
    family: str,
    scale: str,
    prior: Hyperparameters,
    plate: pyro.plate,
) -> Emission:
    """Declare `coefficients` (K, F), and `precisions` of Gaussian noise; a response given `z`."""
    usual = usual_height(y, offset, design, frequency, family)
    coefficients = coefficients_site(
        "coefficients", design, frequency, usual, components, prior, plate
    )

    def line(z: Tensor) -> Tensor:
        return (design * select(coefficients, z, 1)).sum(-1) + offset

    if family == "poisson":
        return lambda z: dist.Poisson(line(z).exp())
    if family == "logistic":
        return lambda z: dist.Bernoulli(logits=line(z))
    precisions = precisions_site(y - offset, design, frequency, components, scale, prior, plate)
    tied = scale == "tied"
    return lambda z: dist.Normal(
        line(z), (precisions if tied else select(precisions, z, 0)).rsqrt()
    )


def precisions_site(
    y: Tensor,
    design: Tensor,
    frequency: Tensor,
    components: int,
    scale: str,
    prior: Hyperparameters,
    plate: pyro.plate,
) -> Tensor:
    """Declare the `precisions` of Gaussian noise, of each component or one for all."""
    tied = scale == "tied"
    df = prior.above("df", () if tied else (components,), 3.0)
    rate = prior.above(
        "scale", df.shape, lambda: left_variance(y, design, frequency) / components**2
    )
    with nullcontext() if tied else plate:
        precisions: Tensor = pyro.sample("precisions", dist.Gamma(df / 2, rate / 2))
    return precisions


def stepwise_emission(
    y: Tensor,
    design: Tensor,
    every: Tensor,
    frequency: Tensor,
    components: int,
    scale: str,
    prior: Hyperparameters,
    plate: pyro.plate,
) -> TorchDistribution:
    """Declare `coefficients` (K, F) and `precisions`; the response at each step in each state.

    Args:
        y: the responses (N,) that are observed.
        design: their covariates (N, F).
        every: the covariates (..., T, F) of every step.
        frequency: how often each observed response counts (N,).
        components: K, the number of states.
        scale: "free" or "tied".
        prior: hyperparameters.
        plate: the plate of the states.
    """
    usual = usual_height(y, torch.zeros_like(y), design, frequency, "gaussian")
    coefficients = coefficients_site(
        "coefficients", design, frequency, usual, components, prior, plate
    )
    precisions = precisions_site(y, design, frequency, components, scale, prior, plate)
    lines = (every.unsqueeze(-2) * select(coefficients, None, 1)).sum(-1)
    # A precision of all states has a dim for them too, next to those for sequences and steps.
    noise = beside(precisions, 0) if scale == "tied" else select(precisions, None, 0)
    return dist.Normal(lines, noise.rsqrt())


def usual_height(
    y: Tensor, offset: Tensor, design: Tensor, frequency: Tensor, family: str
) -> tuple[Tensor, Tensor | float]:
    """The height of the line without covariates, and a unit of it: a deviation of the response.

    The units of an offset (the logarithm of an exposure) move the height as those of `y` do.
    """
    if family in ("poisson", "logistic"):
        responses = moments(y, frequency)
        events = responses.total * responses.mean + 0.5
        if family == "poisson":
            return events.log() - log_sum(offset, frequency).value, 1.0
        share = events / (responses.total + 1.0)
        return torch.logit(share) - weighted_mean(offset, frequency), 1.0
    height = weighted_mean(y - offset, frequency)
    with called("y"):
        deviation = default_variance((y - offset).unsqueeze(-1), frequency, 1)[0].sqrt()
    if not has_level(design, frequency):
        # A line through the origin must reach the response itself.
        return height, (deviation.square() + height.square()).sqrt()
    return height, deviation
