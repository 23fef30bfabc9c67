"""Expectation-maximisation and variational inference for models written in Pyro."""

from ember.inference.alignment import align
from ember.inference.comparison import Comparison, compare
from ember.inference.em import EM
from ember.inference.fit import Fit
from ember.inference.inputs.chunks import chunks
from ember.inference.numerics import (
    positive_definite as _constraints,  # registers a bijection for Wishart sites
)
from ember.inference.numerics.adaptive import Adaptive
from ember.inference.numerics.monte_carlo import MonteCarlo
from ember.inference.numerics.quadrature import Quadrature
from ember.inference.plan.statistics import Statistics
from ember.inference.sampled_fit import SampledFit
from ember.inference.sampling_methods import NUTS, Laplace
from ember.inference.selection import Selection, select
from ember.inference.svi import SVI
from ember.inference.variational_fit import VariationalFit
from ember.inference.vbem import VBEM

__all__ = [
    "EM",
    "NUTS",
    "SVI",
    "VBEM",
    "Adaptive",
    "Comparison",
    "Fit",
    "Laplace",
    "MonteCarlo",
    "Quadrature",
    "SampledFit",
    "Selection",
    "Statistics",
    "VariationalFit",
    "align",
    "chunks",
    "compare",
    "select",
]

del _constraints
