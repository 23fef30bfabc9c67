"""scikit-learn's interface: estimators that take the place of its own and of hmmlearn's.

They need the extra ``pip install 'pyro-ember[sklearn]'``. Those that have a namesake inherit from
it: checks, predictions, scores and attributes are its own, and the fit is Ember's. Where a fit
differs from the namesake's, the class says so. ``ModelEstimator`` wraps any model.
"""

from ember.inference.estimators.bayesian import BayesianGaussianMixture
from ember.inference.estimators.chains import CategoricalHMM, GaussianHMM
from ember.inference.estimators.counts import BernoulliMixture, LatentClass, PoissonMixture
from ember.inference.estimators.factors import FactorAnalysis
from ember.inference.estimators.gaussian import GaussianMixture
from ember.inference.estimators.wrapper import ModelEstimator

__all__ = [
    "BayesianGaussianMixture",
    "BernoulliMixture",
    "CategoricalHMM",
    "FactorAnalysis",
    "GaussianHMM",
    "GaussianMixture",
    "LatentClass",
    "ModelEstimator",
    "PoissonMixture",
]
