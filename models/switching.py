"""Regressions whose coefficients change with the state of a hidden Markov chain.

initial (K)   transition (K, K)   coefficients (K, F), precisions (K)   (plate "states")
    |               |                        |
    v               v                        v
state_0 -> state_1 -> ... -> state_t -----> y_t <--- X_t                (plate "sequences")
"""

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor

from ember.models.parts.chains import CHAIN_KEYS, chain
from ember.models.parts.checks import (
    check_enough,
    check_finite,
    check_floats,
    check_option,
    check_size,
    check_tensor,
    step_frequency,
    step_mask,
)
from ember.models.parts.design import called, regression_keys, stepwise_emission
from ember.models.parts.missing import shown_entries
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["hidden_markov_regression"]


def hidden_markov_regression(
    y: Tensor,
    X: Tensor | None,
    states: int,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    scale: str = "free",
    intercept: bool = True,
    frequency: Tensor | Sequence[float] | None = None,
    stationary: bool = False,
    prior: Prior | None = None,
) -> None:
    """Responses that follow one of K regressions at a time, the one in force changing by a chain.

    Equations, `initial`, `transition` and `state_t` being as in `hidden_markov_gaussian`::

        coefficients_k  ~ Normal(mean, covariance)
        precisions_k    ~ Gamma(df / 2, scale / 2)
        y_t             ~ Normal(X_t @ coefficients_z, 1 / sqrt(precisions_z))    z = state_t

    With `scale="tied"` one precision serves all states. Covariates that are earlier responses make
    it a switching autoregression, given its first steps. With one state it is ordinary regression.

    ============================= ====================== =========================================
    key of `prior`                shape it broadcasts to default
    ============================= ====================== =========================================
    `"initial"`, `"transition"`   (K,) and (K, K)        1.5, as in `hidden_markov_gaussian`
    `"mean"`, `"deviation"`       (K, F)                 as in `regression_mixture`: weak
    `"df"`, `"scale"`             (K,); tied ()          as in `regression_mixture`
    ============================= ====================== =========================================

    A column of ones, if `intercept`, stands before the columns of `X` and counts in F. NaN in `y`
    stands for a response that is missing at random: the chain moves on unobserved.

    Args:
        y: the responses of one sequence (T,) or of several (S, T), floating, NaN where missing; its
            dtype is that of all parameters.
        X: the covariates of every step, (T, F) or (S, T, F), or without F for a single one; None
            for an intercept alone.
        states: the number K of states.
        lengths: how many of its T steps each sequence has (S,), integers; all unless given. What
            `y` and `X` hold beyond them is never looked at.
        scale: `"free"`, or `"tied"` for the same noise in all states.
        intercept: whether each state has an intercept.
        frequency: how often each sequence counts (S,), whole or fractional; once unless given.
        stationary: whether the first state has the distribution that the transitions leave as it
            is, instead of one of its own; then `initial` is no parameter, and takes no prior.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `y` or `X` is no tensor, `states` or `lengths` no integers, `prior` no
            mapping.
        ValueError: if shapes differ, values are infinite or covariates missing, `y` is constant or
            has fewer than two observed steps, or fewer than `states`; if `lengths` does not fit it;
            if an option or a key of `prior` is unknown, or a hyperparameter outside its domain.

    References:
        S. M. Goldfeld and R. E. Quandt (1973). A Markov model for switching regressions. Journal of
        Econometrics 1, 3-15.
        J. D. Hamilton (1989). A new approach to the economic analysis of nonstationary time series
        and the business cycle. Econometrica 57, 357-384.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> X = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
        >>> y = torch.tensor([0.1, 0.8, 2.1, 5.2, 3.9])
        >>> trace = poutine.trace(hidden_markov_regression).get_trace(y, X, 2)
        >>> for name in ("initial", "transition", "coefficients", "precisions", "y"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        initial (2,)
        transition (2, 2)
        coefficients (2, 2)
        precisions (2,)
        y (5,)
    """
    with called("y"):
        y = check_tensor(y, {1: "(T,)", 2: "(S, T)"})
        mask = step_mask(lengths, y, y.dim() == 2)
        inside = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
        check_floats(y[inside], gaps=True)
    check_size(states, "states")
    check_option(scale, "scale", ("free", "tied"))
    design = _designs(X, y, inside, intercept)
    hyper = Hyperparameters(prior, (*CHAIN_KEYS, *regression_keys("gaussian")), y)
    observed = inside & ~y.isnan()
    with called("y"):
        check_enough(int(observed.sum()), states, "states")

    plate = pyro.plate("states", states)
    with called("y"):
        once = step_frequency(frequency, y, observed, y.dim() == 2)
    emission = stepwise_emission(
        y[observed], design[observed], design, once, states, scale, hyper, plate
    )
    y = torch.where(inside, y, 0.0)
    chain(
        y, states, emission, hyper, plate,
        batched=y.dim() == 2, mask=mask, shown=shown_entries(y), stationary_start=stationary,
        frequency=frequency,
        name="y",
    )  # fmt: skip


def _designs(X: object, y: Tensor, inside: Tensor, intercept: bool) -> Tensor:
    """The covariates (*y, F) in the response's dtype, ones before them if asked for."""
    ones = torch.ones_like(y).unsqueeze(-1)
    if X is None:
        if not intercept:
            raise ValueError(
                "there is nothing to regress on: pass covariates `X`, or intercept=True."
            )
        return ones
    with called("X"):
        tail = {1: ("(T,)", "(T, F)"), 2: ("(S, T)", "(S, T, F)")}[y.dim()]
        X = check_tensor(X, dict(zip((y.dim(), y.dim() + 1), tail, strict=True)))
        if X.shape[: y.dim()] != y.shape:
            raise ValueError(
                f"`X` has shape {tuple(X.shape)} but `y` has {tuple(y.shape)}: pass one row of "
                "covariates for each step."
            )
        check_finite(X[inside])
    columns = X.reshape(*y.shape, -1).to(y)
    columns = torch.where(inside.unsqueeze(-1), columns, 0.0)
    return torch.cat([ones, columns], -1) if intercept else columns
