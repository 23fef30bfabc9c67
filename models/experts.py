"""Mixtures of experts: covariates say which of several regressions a row is likely to follow.

gating (K, G)    coefficients (K, F), precisions (K)   (plate "components")
    |                     |
    v                     v
assignment (N) --------> y (N) <--- X (N, F)            (plate "data")
    ^
gating covariates (N, G)
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from ember.models.parts.checks import check_enough, check_size, row_frequency
from ember.models.parts.design import (
    called,
    check_family,
    check_response,
    coefficients_site,
    design_matrix,
    regression_emission,
    regression_keys,
    row_offset,
)
from ember.models.parts.emissions import Emission
from ember.models.parts.plates import data_plate
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["mixture_of_experts"]

GATING_KEYS = ("gating_mean", "gating_deviation")


def mixture_of_experts(
    y: Tensor,
    X: Tensor | None,
    components: int,
    *,
    gating: Tensor | None = None,
    family: str = "gaussian",
    scale: str = "free",
    intercept: bool = True,
    offset: Tensor | Sequence[float] | None = None,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Responses that follow one of K regressions, the likely one depending on covariates.

    Equations, with `C_n` the gating covariates of row n after a 1, and the line of component k as
    in `regression_mixture`::

        gating_k        ~ Normal(gating_mean, gating_covariance)
        coefficients_k  ~ Normal(mean, covariance)
        precisions_k    ~ Gamma(df / 2, scale / 2)
        assignment_n    ~ Categorical(softmax_k(C_n @ gating_k))      z = assignment_n
        y_n             ~ Normal(X_n @ coefficients_z + offset_n, 1 / sqrt(precisions_z))

    Only differences between the rows of `gating` matter to the likelihood. The prior, the same for
    all components, settles their level: at the mode they sum to zero. By maximum likelihood the
    level stays where the start left it.

    ==================== ===================== ===================================================
    key of `prior`       shape it broadcasts to default
    ==================== ===================== ===================================================
    `"gating_mean"`      (K, G)                0
    `"gating_deviation"` (K, G)                of independent coefficients; unless given, a weak
                                               covariance as in `regression_mixture`: ten units
                                               of the logit for a standard deviation of any
                                               combination of the covariates
    the others           as in `regression_mixture`
    ==================== =========================================================================

    Args:
        y: the responses (N,): floating; counts; or 0 and 1.
        X: the experts' covariates (N, F), or (N,) for one; None for an intercept alone.
        components: the number K of components.
        gating: the covariates of the assignment (N, G), without the 1; those in `X` unless given.
        family: `"gaussian"`, `"poisson"` or `"logistic"`.
        scale: `"free"`, or `"tied"` for the same noise around all lines (Gaussian only).
        intercept: whether each expert has an intercept (the gating always has one).
        offset: a known term of each row's line (N,).
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `y`, `X` or `gating` is no tensor, `components` no integer, or `prior` no
            mapping.
        ValueError: if shapes differ, values are not finite or do not suit the family, there are
            fewer than two rows or fewer than `components`; if an option or a key of `prior` is
            unknown, or a hyperparameter or frequency outside its domain.

    References:
        R. A. Jacobs, M. I. Jordan, S. J. Nowlan and G. E. Hinton (1991). Adaptive mixtures of
        local experts. Neural Computation 3, 79-87.
        M. I. Jordan and R. A. Jacobs (1994). Hierarchical mixtures of experts and the EM
        algorithm. Neural Computation 6, 181-214.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> X = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
        >>> y = torch.tensor([0.1, 1.2, 1.9, 1.1, 0.1])
        >>> trace = poutine.trace(mixture_of_experts).get_trace(y, X, 2)
        >>> for name in ("gating", "coefficients", "precisions", "assignment", "y"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        gating (2, 2)
        coefficients (2, 2)
        precisions (2,)
        assignment (5,)
        y (5,)
    """
    check_family(family, scale)
    y = check_response(y, family)
    check_size(components, "components")
    design = design_matrix(X, y, intercept)
    gates = design_matrix(X if gating is None else gating, y, True, "gating")
    offset = row_offset(offset, y)
    hyper = Hyperparameters(prior, (*GATING_KEYS, *regression_keys(family)), y)
    with called("y"):
        counts = row_frequency(frequency, y)
        check_enough(float(counts.sum()), components, "components")

    plate = pyro.plate("components", components)
    slopes = coefficients_site(
        "gating", gates, counts, (0.0, 1.0), components, hyper, plate, GATING_KEYS
    )
    emission: Emission = regression_emission(
        y, design, offset, counts, components, family, scale, hyper, plate
    )
    with data_plate(len(y), None if frequency is None else counts):
        logits = gates @ slopes.mT
        assignment = pyro.sample("assignment", dist.Categorical(logits=logits))
        pyro.sample("y", emission(assignment), obs=y)
