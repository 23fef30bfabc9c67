"""Topics: every word of a document has one, and a document mixes them.

weights (M, K)     (plate "documents")     probs (K, V)     (plate "topics")
    |                                          |
    v                                          v
assignment (C) -----------------------------> x (C)         (plate "cells")
"""

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import Tensor

from ember.models.parts.checks import check_counts, check_size, check_tensor, parameter_dtype
from ember.models.parts.emissions import select
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["topic_model"]

TENTH = 1.1  # a tenth of a word: off the boundary, and documents keep few topics


def topic_model(x: Tensor, topics: int, *, prior: Prior | None = None) -> None:
    """Documents as mixtures of K topics, each a distribution over V words.

    Equations, for each cell c of the table `x` that is not zero, word v in document m,
    `x_mv` times::

        weights_m    ~ Dirichlet(weights)
        probs_k      ~ Dirichlet(probs)
        assignment_c ~ Categorical(weights_m)
        x_c          ~ Categorical(probs_z)          z = assignment_c

    The words of a cell are alike, so they share one latent, weighted by their number. By maximum
    likelihood this is probabilistic latent semantic analysis; the mode under the priors is that of
    latent Dirichlet allocation with its topics' weights kept as parameters.

    ============== ====================== ========================================================
    key of `prior` shape it broadcasts to default
    ============== ====================== ========================================================
    `"weights"`    (M, K)                 1.1: a tenth of a word of each topic in each document
    `"probs"`      (K, V)                 1.1: a tenth of each word in each topic
    ============== ====================== ========================================================

    The likelihood of the order of the words is meant: no multinomial coefficients are in it. New
    documents are folded in by a fit of `pyro.condition(topic_model, data={"probs": probs})`, which
    holds the topics and estimates the weights of these documents.

    Args:
        x: counts (M, V) of words in documents, dense or a sparse COO tensor, of an integer or
            floating dtype; parameters have torch's default dtype where it is integer.
        topics: the number K of topics.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `x` is not a tensor, `topics` no integer or `prior` no mapping.
        ValueError: if `x` is not (M, V), is empty, not finite, negative or fractional, or has no
            word; if a key of `prior` is unknown or a hyperparameter outside its domain.

    References:
        T. Hofmann (2001). Unsupervised learning by probabilistic latent semantic analysis. Machine
        Learning 42, 177-196.
        A. Asuncion, M. Welling, P. Smyth and Y. W. Teh (2009). On smoothing and inference for
        topic models. Uncertainty in Artificial Intelligence 25, 27-34.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> x = torch.tensor([[2, 1, 0], [3, 0, 0], [0, 1, 4]])
        >>> trace = poutine.trace(topic_model).get_trace(x, 2)
        >>> for name in ("weights", "probs", "assignment", "x"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        weights (3, 2)
        probs (2, 3)
        assignment (5,)
        x (5,)
    """
    x = check_tensor(x, {2: "(M, V)"}, "one row of counts for each document")
    cells = x.coalesce() if x.is_sparse else x.to_sparse()
    documents, words = cells.indices()
    counts = cells.values()
    check_counts(counts)
    documents, words, counts = (part[counts > 0] for part in (documents, words, counts))
    check_size(topics, "topics")
    counts = counts.to(parameter_dtype(counts))
    hyper = Hyperparameters(prior, ("weights", "probs"), counts)
    if not len(counts):
        raise ValueError("`x` has no word in any document: all its counts are 0.")

    rows, vocabulary = x.shape
    shares = hyper.above("weights", (rows, topics), TENTH)
    concentration = hyper.above("probs", (topics, vocabulary), TENTH)
    with pyro.plate("documents", rows):
        weights = pyro.sample("weights", dist.Dirichlet(shares))
    with pyro.plate("topics", topics):
        probs = pyro.sample("probs", dist.Dirichlet(concentration))
    with pyro.plate("cells", len(counts)), poutine.scale(scale=counts):
        z = pyro.sample("assignment", dist.Categorical(weights[..., documents, :]))
        pyro.sample("x", dist.Categorical(select(probs, z, 1)), obs=words)
