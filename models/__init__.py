"""Declarative models written in Pyro: data first, then keyword options, nothing about inference.

They run unchanged under every inference of Pyro and of Ember. Sites that hold parameters are
`weights`, `locs`, `precisions`, `rates`, `probs`, `initial` and `transition`, in regressions also
`coefficients` and `gating`, in counts `concentrations`, `inflation` and `occurrence`; latent ones
are `assignment`, `structural` and, summed out inside the chains, `state`; the data are `x`, the
response `y` of a regression, or the columns of a profile by their kind. In tomography the parameter
is the `image` and the data are `counts`. Of item responses they are `discriminations`, `intercepts`
and the like, the latent `ability` is continuous, and the data are `answers`.
"""

from ember.models.counts import count_mixture
from ember.models.documents import multinomial_mixture, naive_bayes
from ember.models.experts import mixture_of_experts
from ember.models.hidden_markov import (
    hidden_markov_bernoulli,
    hidden_markov_categorical,
    hidden_markov_gaussian,
    hidden_markov_poisson,
)
from ember.models.hidden_markov_mixtures import hidden_markov_gaussian_mixture
from ember.models.item_response import item_response
from ember.models.latent_class import bernoulli_mixture, categorical_mixture
from ember.models.mixtures import gaussian_mixture, poisson_mixture
from ember.models.profiles import latent_profile
from ember.models.regressions import regression_mixture
from ember.models.switching import hidden_markov_regression
from ember.models.tomography import emission_tomography
from ember.models.topics import topic_model

__all__ = [
    "bernoulli_mixture",
    "categorical_mixture",
    "count_mixture",
    "emission_tomography",
    "gaussian_mixture",
    "hidden_markov_bernoulli",
    "hidden_markov_categorical",
    "hidden_markov_gaussian",
    "hidden_markov_gaussian_mixture",
    "hidden_markov_poisson",
    "hidden_markov_regression",
    "item_response",
    "latent_profile",
    "mixture_of_experts",
    "multinomial_mixture",
    "naive_bayes",
    "poisson_mixture",
    "regression_mixture",
    "topic_model",
]
