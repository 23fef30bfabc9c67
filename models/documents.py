"""Documents as bags of words, each of one class: clusters, or naive Bayes with some labels.

weights (K)      probs (K, V)          (plate "components")
    |                |
    v                v
assignment (N) ---> x (N, V)           (plate "data")
"""

from collections.abc import Sequence
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from torch import BoolTensor, Tensor

from ember.models.parts.checks import (
    check_counts,
    check_enough,
    check_option,
    check_size,
    check_tensor,
    check_zeros_and_ones,
    row_frequency,
)
from ember.models.parts.design import called
from ember.models.parts.documents import word_emission
from ember.models.parts.emissions import BERNOULLI_KEYS, bernoulli_emission
from ember.models.parts.plates import data_plate, mixture_weights
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["multinomial_mixture", "naive_bayes"]

WHOLE_WORD = 2.0  # Laplace's rule: every word once more than it was seen
MULTINOMIAL_KEYS = ("concentration", "probs")


def multinomial_mixture(
    x: Tensor,
    components: int,
    *,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Rows of counts, such as documents as bags of words, from one of K multinomials.

    Equations, with :math:`L_n` the sum of row n::

        weights      ~ Dirichlet(concentration)
        probs_k      ~ Dirichlet(probs)
        assignment_n ~ Categorical(weights)
        x_n          ~ Multinomial(L_n, probs_z)        z = assignment_n

    ================= ====================== =====================================================
    key of `prior`    shape it broadcasts to default
    ================= ====================== =====================================================
    `"concentration"` (K,)                   2: one row for each component, none is emptied
    `"probs"`         (K, V)                 1.5: half a word of each kind
    ================= ====================== =====================================================

    Args:
        x: counts (N, V), of an integer or floating dtype; parameters have torch's default dtype
            where it is integer.
        components: the number K of components.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `x` is not a tensor, `components` no integer or `prior` no mapping.
        ValueError: if `x` is not (N, V), is empty, not finite, negative or fractional, has fewer
            than two rows or fewer than `components`; if a key of `prior` is unknown, or a
            hyperparameter or frequency outside its domain.

    References:
        L. Rigouste, O. Cappé and F. Yvon (2007). Inference and evaluation of the multinomial
        mixture model for text clustering. Information Processing and Management 43, 1260-1280.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[2, 1, 0], [3, 0, 0], [0, 1, 4]])
        >>> trace = poutine.trace(multinomial_mixture).get_trace(x, 2)
        >>> for name in ("weights", "probs", "assignment", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        weights (2,)
        probs (2, 3)
        assignment (3,)
        x (3, 3)
    """
    x = check_tensor(x, {2: "(N, V)"}, "one row of counts for each document")
    check_counts(x)
    check_size(components, "components")
    counts = row_frequency(frequency, x)
    x = x.to(counts.dtype)
    hyper = Hyperparameters(prior, MULTINOMIAL_KEYS, x)
    check_enough(float(counts.sum()), components, "components")

    weights = mixture_weights(components, hyper)
    emission = word_emission(x, components, hyper, pyro.plate("components", components))
    with data_plate(len(x), None if frequency is None else counts):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("x", emission(assignment), obs=x)


def naive_bayes(
    x: Tensor,
    classes: int,
    *,
    labels: Tensor | Sequence[float] | None = None,
    family: str = "multinomial",
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Naive Bayes classes of documents, of which some are labelled, all, or none.

    The equations are those of `multinomial_mixture` (or `bernoulli_mixture`) with the assignment of
    labelled rows observed. Rows without a label help to say which words go together. With all rows
    labelled a single M-step gives the classifier; `fit.predict(x_new)` applies it.

    ================== ====================== ===================================================
    key of `prior`     shape it broadcasts to default
    ================== ====================== ===================================================
    `"concentration"`  (K,)                   2: one more row of each class
    `"probs"`          (K, V)                 2: one more of each word (`family="multinomial"`)
    `"concentration1"` (K, V)                 2: one more row with each word, and ...
    `"concentration0"` (K, V)                 2: ... one without it (`family="bernoulli"`)
    ================== ====================== ===================================================

    The mode under a Dirichlet prior of concentration `1 + a` is the estimate that other programs
    call smoothed by `a`.

    Args:
        x: counts of words (N, V), or with `family="bernoulli"` 0 and 1 for their presence.
        classes: the number K of classes.
        labels: the class 0, ..., K - 1 of each row (N,); -1 or NaN where it is not known. None
            unless given.
        family: `"multinomial"` or `"bernoulli"`.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `x` is not a tensor, `classes` no integer or `prior` no mapping.
        ValueError: if `x` is not (N, V), is empty, or has values of another kind; if `labels` has
            another length or holds anything but classes, -1 and NaN; if there are fewer than two
            rows or fewer than `classes`, an option or a key of `prior` is unknown, or a
            hyperparameter or frequency outside its domain.

    References:
        K. Nigam, A. K. McCallum, S. Thrun and T. Mitchell (2000). Text classification from
        labeled and unlabeled documents using EM. Machine Learning 39, 103-134.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[2, 1, 0], [3, 0, 0], [0, 1, 4]])
        >>> trace = poutine.trace(naive_bayes).get_trace(x, 2, labels=[0, -1, 1])
        >>> print(trace.nodes["assignment"]["value"][[0, 2]])
        tensor([0, 1])
    """
    x = check_tensor(x, {2: "(N, V)"}, "one row of counts for each document")
    check_option(family, "family", ("multinomial", "bernoulli"))
    (check_counts if family == "multinomial" else check_zeros_and_ones)(x)
    check_size(classes, "classes")
    counts = row_frequency(frequency, x)
    x = x.to(counts.dtype)
    known, given = _labels(labels, x, classes)
    keys = MULTINOMIAL_KEYS if family == "multinomial" else ("concentration", *BERNOULLI_KEYS)
    hyper = Hyperparameters(prior, keys, x)
    check_enough(float(counts.sum()), classes, "classes")

    weights = mixture_weights(classes, hyper)
    plate = pyro.plate("components", classes)
    if family == "multinomial":
        emission = word_emission(x, classes, hyper, plate, WHOLE_WORD)
    else:
        smoothed = {key: WHOLE_WORD for key in BERNOULLI_KEYS}
        hyper = Hyperparameters({**smoothed, **hyper.given}, keys, x)
        emission = bernoulli_emission(x.shape[1], classes, hyper, plate)
    with data_plate(len(x), None if frequency is None else counts):
        prior_of_class = dist.Categorical(weights)
        if bool(known.all()):
            assignment = pyro.sample("assignment", prior_of_class, obs=given)
        elif bool(known.any()):
            assignment = pyro.sample(
                "assignment", prior_of_class, obs=given, obs_mask=cast(BoolTensor, known)
            )
        else:
            assignment = pyro.sample("assignment", prior_of_class)
        pyro.sample("x", emission(assignment), obs=x)


def _labels(labels: object, x: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Which rows have a label, and the labels, 0 where there is none."""
    if labels is None:
        return torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.long)
    with called("labels"):
        found = check_tensor(torch.as_tensor(labels), {1: "(N,)"})
    if len(found) != len(x):
        raise ValueError(
            f"`labels` must have shape ({len(x)},), one for each row of `x` (-1 where it is not "
            f"known), not {tuple(found.shape)}."
        )
    known = ~found.isnan() & (found != -1)
    shown = torch.where(known, found, torch.zeros_like(found))
    if not bool(((shown >= 0) & (shown < classes) & (shown == shown.floor())).all()):
        raise ValueError(
            f"`labels` must hold classes 0 to {classes - 1}, and -1 or NaN where the class is not "
            "known: recode them, for example with torch.unique(labels, return_inverse=True)."
        )
    return known, shown.long()
