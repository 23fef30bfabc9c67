"""Hidden Markov chains whose states emit mixtures of Gaussians.

initial (K)   transition (K, K)   weights (K, M), precisions, locs (K, M, D)   (plate "states")
    |               |                        |
    v               v                        v
state_0 -> state_1 -> ... -> state_t -----> x_t                                (plate "sequences")
"""

from collections.abc import Sequence
from dataclasses import replace

import pyro
import pyro.distributions as dist
from torch import Tensor

from ember.models.parts.chains import CHAIN_KEYS, Sequences, chain
from ember.models.parts.checks import (
    ONE_COLUMN,
    check_enough,
    check_floats,
    check_option,
    check_size,
    check_tensor,
)
from ember.models.parts.emissions import COVARIANCES, GAUSSIAN_KEYS, gaussian_emission, select
from ember.models.parts.missing import shown_steps
from ember.models.parts.plates import WHOLE_COUNT
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["hidden_markov_gaussian_mixture"]


def hidden_markov_gaussian_mixture(
    x: Tensor,
    states: int,
    components: int,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    covariance: str = "full",
    frequency: Tensor | Sequence[float] | None = None,
    stationary: bool = False,
    prior: Prior | None = None,
) -> None:
    """A hidden Markov chain whose K states emit rows of a mixture of M Gaussians each.

    Equations, for `covariance="full"`, `initial`, `transition` and `state_t` being as in
    `hidden_markov_gaussian`::

        weights_k     ~ Dirichlet(concentration)
        precisions_km ~ Wishart(df, inverse(scale))
        locs_km       ~ Normal(mean, inverse(kappa precisions_km))
        component_t   ~ Categorical(weights_z)                    z = state_t
        x_t           ~ Normal(locs_zc, inverse(precisions_zc))   c = component_t

    Pyro sums over the components as over the states; Ember calls them `component`.

    ======================================= ============ =========================================
    key of `prior`                          shape        default
    ======================================= ============ =========================================
    `"initial"`, `"transition"`             (K,), (K, K) 1.5, as in `hidden_markov_gaussian`
    `"concentration"`                       (K, M)       2: one row for each component
    `"kappa"`, `"mean"`, `"df"`, `"scale"`  (K, M, ...)  as in `gaussian_mixture` with K M
                                                         components; `"scale"` (D, D) where tied
    ======================================= ============ =========================================

    Args:
        x: one sequence (T, D) or several (S, T, D), floating, NaN where missing; its dtype is that
            of all parameters.
        states: the number K of states.
        components: the number M of components of each state.
        lengths: how many of its T steps each sequence has (S,), integers; all unless given. What
            `x` holds beyond them is never looked at and may be NaN.
        covariance: `"full"`, `"diag"`, `"spherical"` or `"tied"` (the same for all components of
            all states), as in `gaussian_mixture`.
        frequency: how often each sequence counts (S,), whole or fractional; once unless given.
        stationary: whether the first state has the distribution that the transitions leave as it
            is, instead of one of its own; then `initial` is no parameter, and takes no prior.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `x` is not a floating tensor, `states`, `components` or `lengths` no integers,
            `prior` no mapping.
        ValueError: if `x` has another shape, is empty or infinite, has fewer than two steps in all,
            fewer than `states * components`, a column of NaN only, or (without a given scale) a
            constant column; if `lengths` does not fit it; if an option or a key of `prior` is
            unknown, or a hyperparameter outside its domain.

    References:
        B. H. Juang, S. E. Levinson and M. M. Sondhi (1986). Maximum likelihood estimation for
        multivariate mixture observations of Markov chains. IEEE Transactions on Information Theory
        32, 307-309.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[0.1, 0.2], [0.2, 0.1], [3.0, 3.3], [3.2, 2.9], [5.0, 0.0]])
        >>> trace = poutine.trace(hidden_markov_gaussian_mixture).get_trace(x, 2, 2)
        >>> for name in ("initial", "transition", "weights", "precisions", "locs", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        initial (2,)
        transition (2, 2)
        weights (2, 2)
        precisions (2, 2, 2, 2)
        locs (2, 2, 2)
        x (5, 2)
    """
    x = check_tensor(
        x,
        {2: "(T, D)", 3: "(S, T, D)"},
        ONE_COLUMN,
    )
    data = Sequences.of(x, lengths, frequency, batched=x.dim() == 3)
    check_floats(data.rows, gaps=True)
    check_size(states, "states")
    check_size(components, "components")
    check_option(covariance, "covariance", tuple(COVARIANCES))
    hyper = Hyperparameters(prior, (*CHAIN_KEYS, "concentration", *GAUSSIAN_KEYS), data.x)
    check_enough(len(data.rows), states * components, "states * components")

    plate = pyro.plate("states", states)
    concentration = hyper.above("concentration", (states, components), WHOLE_COUNT)
    with plate:
        weights = pyro.sample("weights", dist.Dirichlet(concentration))
    sizes = (states, components)
    parts = gaussian_emission(data.rows, data.once, sizes, covariance, hyper, plate)(None)
    parts, x = shown_steps(parts, data.x, data.shown, latents=2)
    kinds = dist.Categorical(select(weights, None, 1))
    emission = dist.MixtureSameFamily(kinds, parts, validate_args=False)  # gaps are no support
    data = replace(data, x=x, shown=None)  # the parts know which entries are there
    chain(data, states, emission, hyper, plate, stationary_start=stationary)
