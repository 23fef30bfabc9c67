"""Declarative models written in Pyro: data first, then keyword options, nothing about inference.

They run unchanged under every inference of Pyro and of Ember. Sites that hold parameters are
`weights`, `locs`, `precisions`, `rates`, `probs`, `initial` and `transition`; latent ones are
`assignment` and, summed out inside the chains, `state`; the data are `x`.
"""

from ember.models.hidden_markov import (
    hidden_markov_bernoulli,
    hidden_markov_categorical,
    hidden_markov_gaussian,
    hidden_markov_poisson,
)
from ember.models.latent_class import bernoulli_mixture, categorical_mixture
from ember.models.mixtures import gaussian_mixture, poisson_mixture

__all__ = [
    "bernoulli_mixture",
    "categorical_mixture",
    "gaussian_mixture",
    "hidden_markov_bernoulli",
    "hidden_markov_categorical",
    "hidden_markov_gaussian",
    "hidden_markov_poisson",
    "poisson_mixture",
]
