"""Declarative models written in Pyro: data first, then keyword options, nothing about inference.

They run unchanged under every inference of Pyro and of Ember. Sites that hold parameters are
`weights`, `locs`, `precisions`, `rates`, `probs`, `initial` and `transition`, in regressions also
`coefficients` and `gating`, in counts `concentrations`, `inflation` and `occurrence`; latent ones
are `assignment`, `structural` and, summed out inside the chains, `state`; the data are `x`, the
response `y` of a regression, or the columns of a profile by their kind. In tomography the parameter
is the `image` and the data are `counts`. Of item responses they are `discriminations`, `intercepts`
and the like, the latent `ability` is continuous, and the data are `answers`.

Models with Gaussian latents have variances as parameters (`variance`, `uniquenesses`, and named
ones such as `group_variance`), and `loadings` where latents are multiplied. Their latents, such as
`factors` and `group_effects`, say `infer={"integrate": "gaussian"}`, and `ability` says
`"quadrature"`: other inferences sample them. So do the weights `u` of models with heavy tails,
which are integrated as `"conjugate"`; their degrees of freedom are the parameter `df`.
"""

from ember.models.counts import count_mixture
from ember.models.documents import multinomial_mixture, naive_bayes
from ember.models.experts import mixture_of_experts
from ember.models.factor_analysis import factor_analysis, probabilistic_pca
from ember.models.factor_mixtures import mixture_of_factor_analysers
from ember.models.generalised_mixed_models import generalised_linear_mixed_model
from ember.models.growth import growth_curves
from ember.models.hidden_markov import (
    hidden_markov_bernoulli,
    hidden_markov_categorical,
    hidden_markov_gaussian,
    hidden_markov_poisson,
)
from ember.models.hidden_markov_mixtures import hidden_markov_gaussian_mixture
from ember.models.item_response import item_response
from ember.models.kinship import animal_model
from ember.models.latent_class import bernoulli_mixture, categorical_mixture
from ember.models.mixed_models import linear_mixed_model
from ember.models.mixtures import gaussian_mixture, poisson_mixture
from ember.models.multivariate_normal import multivariate_normal
from ember.models.ordinal import ordinal_probit
from ember.models.profiles import latent_profile
from ember.models.regressions import regression_mixture
from ember.models.state_space import (
    linear_gaussian_state_space,
    local_level,
    local_linear_trend,
)
from ember.models.structural_dynamics import structural_dynamics
from ember.models.student_t import student_t_mixture, student_t_regression
from ember.models.switching import hidden_markov_regression
from ember.models.tomography import emission_tomography
from ember.models.topics import topic_model

__all__ = [
    "animal_model",
    "bernoulli_mixture",
    "categorical_mixture",
    "count_mixture",
    "emission_tomography",
    "factor_analysis",
    "gaussian_mixture",
    "generalised_linear_mixed_model",
    "growth_curves",
    "hidden_markov_bernoulli",
    "hidden_markov_categorical",
    "hidden_markov_gaussian",
    "hidden_markov_gaussian_mixture",
    "hidden_markov_poisson",
    "hidden_markov_regression",
    "item_response",
    "latent_profile",
    "linear_gaussian_state_space",
    "linear_mixed_model",
    "local_level",
    "local_linear_trend",
    "mixture_of_experts",
    "mixture_of_factor_analysers",
    "multinomial_mixture",
    "multivariate_normal",
    "naive_bayes",
    "ordinal_probit",
    "poisson_mixture",
    "probabilistic_pca",
    "regression_mixture",
    "structural_dynamics",
    "student_t_mixture",
    "student_t_regression",
    "topic_model",
]
