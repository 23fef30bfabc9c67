"""Latent class analysis: answers that are independent once the class of a person is known.

weights (K)      probs (K, J) or (K, J, L)   (plate "components")
    |                     |
    v                     v
assignment (N) --------> x (N, J)            (plate "data")
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from ember.models.parts.checks import (
    ONE_ITEM,
    check_codes,
    check_enough,
    check_size,
    check_tensor,
    check_zeros_and_ones,
    item_levels,
    row_frequency,
)
from ember.models.parts.emissions import BERNOULLI_KEYS, bernoulli_emission, categorical_emission
from ember.models.parts.missing import observe, shown_entries
from ember.models.parts.plates import data_plate, mixture_weights
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["bernoulli_mixture", "categorical_mixture"]


def bernoulli_mixture(
    x: Tensor,
    components: int,
    *,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Latent classes for J yes-or-no items.

    Equations::

        weights      ~ Dirichlet(concentration)
        probs_kj     ~ Beta(concentration1, concentration0)
        assignment_n ~ Categorical(weights)
        x_nj         ~ Bernoulli(probs_zj)        z = assignment_n

    ================== ====================== ===================================================
    key of `prior`     shape it broadcasts to default
    ================== ====================== ===================================================
    `"concentration"`  (K,)                   2: one row for each class, so that none is emptied
    `"concentration1"` (K, J)                 1.5: half an answer 1
    `"concentration0"` (K, J)                 1.5: half an answer 0
    ================== ====================== ===================================================

    Half an answer of each kind keeps the mode off 0 and 1, where no later row could be otherwise;
    it makes the mode equal to the posterior mean under Jeffreys' prior.

    Args:
        x: answers (N, J), 0 or 1, of any real dtype; parameters have torch's default dtype where it
            is integer or boolean. NaN stands for an answer that is missing at random.
        components: the number K of classes.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given. A table of
            answer patterns and their counts is passed so.

    Raises:
        TypeError: if `x` is not a tensor, `components` no integer or `prior` no mapping.
        ValueError: if `x` is not (N, J), is empty, holds anything but 0, 1 and NaN, has fewer than
            two rows or fewer than `components`, or an item without an answer; if a key of `prior`
            is unknown, or a hyperparameter or frequency outside its domain.

    References:
        P. F. Lazarsfeld and N. W. Henry (1968). Latent Structure Analysis. Houghton Mifflin.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0]])
        >>> trace = poutine.trace(bernoulli_mixture).get_trace(x, 2)
        >>> for name in ("weights", "probs", "assignment", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        weights (2,)
        probs (2, 3)
        assignment (4,)
        x (4, 3)
    """
    x = check_tensor(x, {2: "(N, J)"}, ONE_ITEM)
    check_zeros_and_ones(x, gaps=True)
    check_size(components, "components")
    counts = row_frequency(frequency, x)
    x = x.to(counts.dtype)
    hyper = Hyperparameters(prior, ("concentration", *BERNOULLI_KEYS), x)
    check_enough(float(counts.sum()), components, "components")

    weights = mixture_weights(components, hyper)
    plate = pyro.plate("components", components)
    emission = bernoulli_emission(x.shape[1], components, hyper, plate)
    shown = shown_entries(x)
    with data_plate(len(x), None if frequency is None else counts):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        observe("x", emission(assignment), x, shown)


def categorical_mixture(
    x: Tensor,
    components: int,
    *,
    levels: int | Sequence[int] | None = None,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Latent classes for J items with several levels each.

    Equations::

        weights      ~ Dirichlet(concentration)
        probs_kj     ~ Dirichlet(probs)
        assignment_n ~ Categorical(weights)
        x_nj         ~ Categorical(probs_zj)      z = assignment_n

    Where all items have the same number L of levels, there is one site `probs` (K, J, L) and one
    observed site `x` (N, J). Where the numbers differ, every item j has its own pair, `probs_j`
    (K, L_j) and `x_j` (N,).

    ================= ============================== ============================================
    key of `prior`    shape it broadcasts to         default
    ================= ============================== ============================================
    `"concentration"` (K,)                           2: one row for each class, none is emptied
    `"probs"`         (K, J, L), or (K, L_j) of each 1.5: half an answer of each level, as in
                      item where the numbers differ  `bernoulli_mixture`
    ================= ============================== ============================================

    Args:
        x: level codes 0, ..., L_j - 1 (N, J), of an integer or floating dtype; parameters have
            torch's default dtype where it is integer. NaN stands for an answer that is missing at
            random.
        components: the number K of classes.
        levels: the number of levels, of all items or of each; read from `x` unless given (one more
            than the highest code, at least 2). Give it where a level may have no answer in `x`,
            and where a fitted model meets new rows.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `x` is not a tensor, `components` no integer or `prior` no mapping.
        ValueError: if `x` is not (N, J), is empty, holds negative, fractional or too high codes,
            has fewer than two rows or fewer than `components`, or an item without an answer; if
            `levels` has another length than the items or is below 2, a key of `prior` is unknown,
            or a hyperparameter or frequency outside its domain.

    References:
        L. A. Goodman (1974). Exploratory latent structure analysis using both identifiable and
        unidentifiable models. Biometrika 61, 215-231.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[0, 2], [1, 2], [2, 0], [2, 1]])
        >>> trace = poutine.trace(categorical_mixture).get_trace(x, 2)
        >>> for name in ("weights", "probs", "assignment", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        weights (2,)
        probs (2, 2, 3)
        assignment (4,)
        x (4, 2)
        >>> trace = poutine.trace(categorical_mixture).get_trace(x, 2, levels=[3, 4])
        >>> print([name for name in trace.nodes if name.startswith(("probs", "x"))])
        ['probs_0', 'probs_1', 'x_0', 'x_1']
    """
    x = check_tensor(x, {2: "(N, J)"}, ONE_ITEM)
    check_codes(x, gaps=True)
    check_size(components, "components")
    counts = row_frequency(frequency, x)
    shown = shown_entries(x)
    x = (x if shown is None else x.nan_to_num(nan=0.0)).long()
    sizes = item_levels(levels, x)
    hyper = Hyperparameters(prior, ("concentration", "probs"), counts)
    check_enough(float(counts.sum()), components, "components")

    weights = mixture_weights(components, hyper)
    plate = pyro.plate("components", components)
    if len(set(sizes)) == 1:
        shape = (components, len(sizes), sizes[0])
        observed = {"x": (x, shown, categorical_emission("probs", shape, hyper, plate))}
    else:
        observed = {
            f"x_{j}": (
                x[:, j],
                None if shown is None else shown[:, j],
                categorical_emission(f"probs_{j}", (components, size), hyper, plate),
            )
            for j, size in enumerate(sizes)
        }
    with data_plate(len(x), None if frequency is None else counts):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        for name, (codes, given, emission) in observed.items():
            observe(name, emission(assignment), codes, given)
