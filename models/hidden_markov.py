"""Hidden Markov chains with Gaussian, Poisson, categorical and yes-or-no emissions.

    initial (K)   transition (K, K)   precisions, locs | rates | probs   (plate "states")
        |               |                        |
        v               v                        v
    state_0 -> state_1 -> ... -> state_t -----> x_t                      (plate "sequences")

All steps of a sequence are one site, `x`: Pyro's `DiscreteHMM` sums over the states. Ember gives
them the name `state`.
"""

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor

from ember.models.parts.chains import CHAIN_KEYS, Sequences, chain
from ember.models.parts.checks import (
    ONE_COLUMN,
    ONE_ITEM,
    check_codes,
    check_counts,
    check_enough,
    check_floats,
    check_option,
    check_size,
    check_tensor,
    check_zeros_and_ones,
    item_levels,
    parameter_dtype,
)
from ember.models.parts.emissions import (
    BERNOULLI_KEYS,
    COVARIANCES,
    GAUSSIAN_KEYS,
    POISSON_KEYS,
    bernoulli_emission,
    categorical_emission,
    gaussian_emission,
    poisson_emission,
)
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = [
    "hidden_markov_bernoulli",
    "hidden_markov_categorical",
    "hidden_markov_gaussian",
    "hidden_markov_poisson",
]


def hidden_markov_gaussian(
    x: Tensor,
    states: int,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    covariance: str = "full",
    frequency: Tensor | Sequence[float] | None = None,
    stationary: bool = False,
    prior: Prior | None = None,
) -> None:
    """A hidden Markov chain whose K states emit Gaussian rows.

    Equations, for `covariance="full"`::

        initial      ~ Dirichlet(initial)
        transition_k ~ Dirichlet(transition_k)
        precisions_k ~ Wishart(df, inverse(scale))
        locs_k       ~ Normal(mean, inverse(kappa precisions_k))
        state_0      ~ Categorical(initial)
        state_t      ~ Categorical(transition_z)                z = state_(t-1)
        x_t          ~ Normal(locs_z, inverse(precisions_z))    z = state_t

    ================ ====================== ======================================================
    key of `prior`   shape it broadcasts to default
    ================ ====================== ======================================================
    `"initial"`      (K,)                   1.5: half a sequence begins in each state
    `"transition"`   (K, K), row: from      1.5: half a step goes from each state to each, flat;
                                            `1.5 + 10 * torch.eye(K)` makes the states sticky
    `"kappa"`, `"mean"`, `"df"`, `"scale"`  as in `gaussian_mixture`, K being the states
    ================ ====================== ======================================================

    NaN stands for an entry that is missing at random, and drops out. Through a step of which
    nothing was seen the chain moves on, unlike the steps past the end of a sequence (`lengths`),
    which are not there at all. It is so in all hidden Markov models here.

    Args:
        x: one sequence (T, D) or several (S, T, D), floating, NaN where missing; its dtype is that
            of all parameters.
        states: the number K of states.
        lengths: how many of its T steps each sequence has (S,), integers; all unless given. What
            `x` holds beyond them is never looked at and may be NaN.
        covariance: `"full"`, `"diag"`, `"spherical"` or `"tied"`, as in `gaussian_mixture`.
        frequency: how often each sequence counts (S,), whole or fractional; once unless given.
        stationary: whether the first state has the distribution that the transitions leave as it
            is, instead of one of its own; then `initial` is no parameter, and takes no prior.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `x` is not a floating tensor, `states` or `lengths` no integers, `prior` no
            mapping.
        ValueError: if `x` has another shape, is empty or infinite, has fewer than two steps in all,
            fewer than `states`, a column of NaN only, or (without a given scale) a constant column;
            if `lengths` does not fit it; if an option or a key of `prior` is unknown, or a
            hyperparameter outside its domain.

    References:
        L. R. Rabiner (1989). A tutorial on hidden Markov models and selected applications in speech
        recognition. Proceedings of the IEEE 77, 257-286.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[0.1, 0.2], [0.2, 0.1], [3.0, 3.3], [3.2, 2.9]])
        >>> trace = poutine.trace(hidden_markov_gaussian).get_trace(x, 2, covariance="diag")
        >>> for name in ("initial", "transition", "precisions", "locs", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        initial (2,)
        transition (2, 2)
        precisions (2, 2)
        locs (2, 2)
        x (4, 2)
    """
    x = check_tensor(
        x,
        {2: "(T, D)", 3: "(S, T, D)"},
        ONE_COLUMN,
    )
    data = Sequences.of(x, lengths, frequency, batched=x.dim() == 3)
    check_floats(data.rows, gaps=True)
    check_size(states, "states")
    check_option(covariance, "covariance", tuple(COVARIANCES))
    hyper = Hyperparameters(prior, (*CHAIN_KEYS, *GAUSSIAN_KEYS), data.x)
    check_enough(len(data.rows), states, "states")

    plate = pyro.plate("states", states)
    emission = gaussian_emission(data.rows, data.once, states, covariance, hyper, plate)
    chain(data, states, emission(None), hyper, plate, stationary_start=stationary)


def hidden_markov_poisson(
    x: Tensor,
    states: int,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    frequency: Tensor | Sequence[float] | None = None,
    stationary: bool = False,
    prior: Prior | None = None,
) -> None:
    """A hidden Markov chain whose K states emit counts.

    Equations, `initial`, `transition` and `state_t` being as in `hidden_markov_gaussian`::

        rates_k ~ Gamma(shape, rate)
        x_t     ~ Poisson(rates_z)                z = state_t

    ============================= ====================== =========================================
    key of `prior`                shape it broadcasts to default
    ============================= ====================== =========================================
    `"initial"`, `"transition"`   (K,) and (K, K)        1.5, as in `hidden_markov_gaussian`
    `"shape"`                     (K,)                   1.5: half an event, so no rate is at 0
    `"rate"`                      (K,)                   shape / mean of `x`
    ============================= ====================== =========================================

    Args:
        x: counts of one sequence (T,) or of several (S, T), of an integer or floating dtype;
            parameters have torch's default dtype where it is integer. NaN stands for a count that
            is missing at random.
        states: the number K of states.
        lengths: how many of its T steps each sequence has (S,), integers; all unless given. What
            `x` holds beyond them is never looked at.
        frequency: how often each sequence counts (S,), whole or fractional; once unless given.
        stationary: whether the first state has the distribution that the transitions leave as it
            is, instead of one of its own; then `initial` is no parameter, and takes no prior.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `x` is not a tensor, `states` or `lengths` no integers, `prior` no mapping.
        ValueError: if `x` has another shape, is empty, infinite, negative or fractional, has
            nothing but NaN, fewer than two steps in all or fewer than `states`; if `lengths` does
            not fit it; if a key of `prior` is unknown, or a hyperparameter outside its domain.

    References:
        W. Zucchini, I. L. MacDonald and R. Langrock (2016). Hidden Markov Models for Time Series.
        2nd edition, CRC Press, chapter 2.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[0, 1, 7], [9, 8, -1]])
        >>> model = poutine.trace(hidden_markov_poisson)
        >>> trace = model.get_trace(x, 2, lengths=torch.tensor([3, 2]))
        >>> for name in ("initial", "transition", "rates", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        initial (2,)
        transition (2, 2)
        rates (2,)
        x (2, 3)
    """
    x = check_tensor(x, {1: "(T,)", 2: "(S, T)"})
    data = Sequences.of(x, lengths, frequency, batched=x.dim() == 2)
    check_counts(data.rows, gaps=True)
    check_size(states, "states")
    data = data.map(lambda values: values.to(parameter_dtype(x)))
    hyper = Hyperparameters(prior, (*CHAIN_KEYS, *POISSON_KEYS), data.x)
    check_enough(len(data.rows), states, "states")

    plate = pyro.plate("states", states)
    emission = poisson_emission(data.rows, data.once, states, hyper, plate)
    chain(data, states, emission(None), hyper, plate, stationary_start=stationary)


def hidden_markov_categorical(
    x: Tensor,
    states: int,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    levels: int | None = None,
    frequency: Tensor | Sequence[float] | None = None,
    stationary: bool = False,
    prior: Prior | None = None,
) -> None:
    """A hidden Markov chain whose K states emit one of L levels.

    Equations, `initial`, `transition` and `state_t` being as in `hidden_markov_gaussian`::

        probs_k ~ Dirichlet(probs_k)
        x_t     ~ Categorical(probs_z)            z = state_t

    ============================= ====================== =========================================
    key of `prior`                shape it broadcasts to default
    ============================= ====================== =========================================
    `"initial"`, `"transition"`   (K,) and (K, K)        1.5, as in `hidden_markov_gaussian`
    `"probs"`                     (K, L)                 1.5: half a count of each level
    ============================= ====================== =========================================

    Args:
        x: level codes 0, ..., L - 1 of one sequence (T,) or of several (S, T), of an integer or
            floating dtype; parameters have torch's default dtype where it is integer. NaN stands
            for a code that is missing at random.
        states: the number K of states.
        lengths: how many of its T steps each sequence has (S,), integers; all unless given. What
            `x` holds beyond them is never looked at.
        levels: the number L of levels; one more than the highest code, at least 2, unless given.
            Give it where a level may be absent from `x`, and where a fitted model meets new data.
        frequency: how often each sequence counts (S,), whole or fractional; once unless given.
        stationary: whether the first state has the distribution that the transitions leave as it
            is, instead of one of its own; then `initial` is no parameter, and takes no prior.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `x` is not a tensor, `states` or `lengths` no integers, `prior` no mapping.
        ValueError: if `x` has another shape, is empty, holds negative, fractional or too high
            codes, nothing but NaN, fewer than two steps in all or fewer than `states`; if `lengths`
            does not fit it; if `levels` is below 2, a key of `prior` is unknown, or a
            hyperparameter outside its domain.

    References:
        L. E. Baum, T. Petrie, G. Soules and N. Weiss (1970). A maximization technique occurring in
        the statistical analysis of probabilistic functions of Markov chains. Annals of
        Mathematical Statistics 41, 164-171.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([0, 2, 1, 1, 2, 0])
        >>> trace = poutine.trace(hidden_markov_categorical).get_trace(x, 2)
        >>> for name in ("initial", "transition", "probs", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        initial (2,)
        transition (2, 2)
        probs (2, 3)
        x (6,)
    """
    x = check_tensor(x, {1: "(T,)", 2: "(S, T)"})
    like = torch.empty((), dtype=parameter_dtype(x), device=x.device)
    data = Sequences.of(x, lengths, frequency, batched=x.dim() == 2)
    check_codes(data.rows, gaps=True)
    check_size(states, "states")
    if data.shown is not None:
        data = data.map(lambda values: values.nan_to_num(nan=0.0))
    (size,) = item_levels(levels, data.rows.unsqueeze(-1))
    hyper = Hyperparameters(prior, (*CHAIN_KEYS, "probs"), like)
    check_enough(len(data.rows), states, "states")

    plate = pyro.plate("states", states)
    emission = categorical_emission("probs", (states, size), hyper, plate)
    chain(data.map(Tensor.long), states, emission(None), hyper, plate, stationary_start=stationary)


def hidden_markov_bernoulli(
    x: Tensor,
    states: int,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    frequency: Tensor | Sequence[float] | None = None,
    stationary: bool = False,
    prior: Prior | None = None,
) -> None:
    """A hidden Markov chain whose K states emit J yes-or-no items.

    Equations, `initial`, `transition` and `state_t` being as in `hidden_markov_gaussian`::

        probs_kj ~ Beta(concentration1, concentration0)
        x_tj     ~ Bernoulli(probs_zj)            z = state_t

    ======================================= ============ =========================================
    key of `prior`                          shape        default
    ======================================= ============ =========================================
    `"initial"`, `"transition"`             (K,), (K, K) 1.5, as in `hidden_markov_gaussian`
    `"concentration1"`, `"concentration0"`  (K, J)       1.5: half a yes and half a no
    ======================================= ============ =========================================

    Args:
        x: 0 and 1 for one sequence (T, J) or for several (S, T, J), of an integer or floating
            dtype; parameters have torch's default dtype where it is integer. NaN stands for an
            answer that is missing at random.
        states: the number K of states.
        lengths: how many of its T steps each sequence has (S,), integers; all unless given. What
            `x` holds beyond them is never looked at.
        frequency: how often each sequence counts (S,), whole or fractional; once unless given.
        stationary: whether the first state has the distribution that the transitions leave as it
            is, instead of one of its own; then `initial` is no parameter, and takes no prior.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `x` is not a tensor, `states` or `lengths` no integers, `prior` no mapping.
        ValueError: if `x` has another shape, is empty or holds anything but 0 and 1, has an item of
            NaN only, fewer than two steps in all or fewer than `states`; if `lengths` does not fit
            it; if a key of `prior` is unknown, or a hyperparameter outside its domain.

    References:
        W. Zucchini, I. L. MacDonald and R. Langrock (2016). Hidden Markov Models for Time Series.
        2nd edition, CRC Press, section 9.4.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 1, 0]])
        >>> trace = poutine.trace(hidden_markov_bernoulli).get_trace(x, 2)
        >>> for name in ("initial", "transition", "probs", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        initial (2,)
        transition (2, 2)
        probs (2, 3)
        x (3, 3)
    """
    x = check_tensor(
        x,
        {2: "(T, J)", 3: "(S, T, J)"},
        ONE_ITEM,
    )
    data = Sequences.of(x, lengths, frequency, batched=x.dim() == 3)
    check_zeros_and_ones(data.rows, gaps=True)
    check_size(states, "states")
    data = data.map(lambda values: values.to(parameter_dtype(x)))
    hyper = Hyperparameters(prior, (*CHAIN_KEYS, *BERNOULLI_KEYS), data.x)
    check_enough(len(data.rows), states, "states")

    plate = pyro.plate("states", states)
    emission = bernoulli_emission(data.rows.shape[-1], states, hyper, plate)
    chain(data, states, emission(None), hyper, plate, stationary_start=stationary)
