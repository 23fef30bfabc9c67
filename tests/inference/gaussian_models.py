"""Small models with Gaussian latents, written by hand as a user would, and data drawn from them.

``CASES`` can be integrated exactly; those of ``gaussian_refusals.py`` cannot. Nothing of Ember is
used here.
"""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from tests.inference import dense_gaussian
from tests.inference.brute_force import run
from tests.inference.examples import Example
from tests.inference.gaussian_chains import (
    GAPS,
    SERIES,
    SEVERAL,
    Y_TURNING,
    T,
    autoregression,
    local_level,
    local_trend,
    many_series,
    vector_chain,
)
from tests.inference.gaussian_groups import (
    ANIMAL,
    DISTRICT,
    EFFECT,
    ERROR,
    GROUP,
    ITEM,
    PAIRS,
    SCHOOL,
    SHOWN,
    Y_CROSSED,
    Y_KIN,
    Y_LINES,
    Y_NESTED,
    Y_PAIRS,
    Y_PLANE,
    A,
    X,
    Y,
    correlated_slopes,
    crossed,
    crossed_by_a_vector,
    independent_slopes,
    kinship,
    known_scales,
    masked,
    nested,
    nested_plates,
    non_centred,
    only_slopes,
    paired_comparison,
    prior_mean,
    random_intercept,
    ridge,
    shared_scale,
    slopes_as_two_sites,
    slopes_with_priors,
    two_children,
    vector_effects,
    weighted,
)
from tests.inference.gaussian_rows import (
    ENTRIES,
    X_FACTORS,
    X_TWO,
    Y_CLASSES,
    factor_analysis,
    factor_mixture,
    fixed_loadings,
    intercept_mixture,
    multivariate_factors,
    ppca,
)
from tests.inference.gaussian_sites import normal, steps


@dataclass(frozen=True)
class Case:
    """A model, its data, and the names of its Gaussian latents.

    Attributes:
        model: A Pyro model, its Gaussian latents marked.
        args: Its data.
        latents: The names of the Gaussian latents, in any order.
        kwargs: Its options.
        objective: What has a maximum inside: "mle", or "map" where only the prior gives one.
        identified: Whether the parameters at the maximum are unique.
    """

    model: Callable[..., None]
    args: tuple[Any, ...]
    latents: tuple[str, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    objective: str = "mle"
    identified: bool = True

    def start(self) -> dict[str, Tensor]:
        """Where a search may begin: ``pyro.param`` sites as the model has them, else a draw."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls every single Wishart draw singular
            plain = run(self.model, {}, {}, *self.args, **self.kwargs)
        written = {
            name: site["value"].detach()
            for name, site in plain.nodes.items()
            if site["type"] == "param"
        }
        pyro.clear_param_store()
        return {**self.params(0), **written}

    def params(self, seed: int) -> dict[str, Tensor]:
        """Random parameters: draws from priors; ``pyro.param`` sites moved within their support."""
        drawn = Example("", self.model, self.args, self.kwargs).params(seed)
        return {name: value for name, value in drawn.items() if name not in self.latents}

    def dense(self, params: dict[str, Tensor], check: bool = True) -> dense_gaussian.Dense:
        """The oracle's answer at some parameters."""
        return dense_gaussian.dense(
            self.model, self.latents, params, *self.args, check=check, **self.kwargs
        )

    def maximum(self, start: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """The oracle's maximum of the objective, from some start."""
        return dense_gaussian.maximum(
            self.model, self.latents, start, *self.args, objective=self.objective, **self.kwargs
        )

    def unmarked(self) -> "Case":
        """The same model without marks."""
        return dataclasses.replace(self, model=unmarked(self.model))


class _Unmark(Messenger):
    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"] = {key: how for key, how in msg["infer"].items() if key != "integrate"}


def unmarked(model: Callable[..., None]) -> Callable[..., None]:
    """A model whose sites say nothing of how to integrate them."""

    def plain(*args: Any, **kwargs: Any) -> None:
        with _Unmark():
            model(*args, **kwargs)

    return plain


CASES: dict[str, Case] = {
    "random intercept": Case(random_intercept, (Y, GROUP), ("u",)),
    "prior mean": Case(prior_mean, (Y, GROUP), ("theta",)),
    "non-centred": Case(non_centred, (Y, GROUP), ("z",)),
    "nested plates": Case(nested_plates, (Y_CLASSES,), ("u",)),
    "correlated slopes": Case(correlated_slopes, (Y_LINES, X, GROUP), ("u",)),
    "slopes with priors": Case(slopes_with_priors, (Y_LINES, X, GROUP), ("u",), objective="map"),
    "independent slopes": Case(independent_slopes, (Y_LINES, X, GROUP), ("u",)),
    "slopes as two sites": Case(slopes_as_two_sites, (Y_LINES, X, GROUP), ("a", "b")),
    "crossed": Case(crossed, (Y_CROSSED, GROUP, ITEM), ("u", "w")),
    "crossed by a vector": Case(
        crossed_by_a_vector, (Y_CROSSED, GROUP, ITEM), ("u", "w"), objective="map"
    ),
    "nested": Case(nested, (Y_NESTED, SCHOOL, DISTRICT), ("a", "b")),
    "weighted": Case(weighted, (Y, GROUP, 0.5 + (torch.arange(40) % 3).double()), ("u",)),
    "masked": Case(masked, (Y, GROUP, SHOWN), ("u",)),
    "group without rows": Case(masked, (Y, GROUP, SHOWN & (GROUP != 2)), ("u",)),
    "two children": Case(
        two_children, (Y, GROUP, -0.7 * Y_CROSSED + 0.3 * normal(33, 40), GROUP), ("u",)
    ),
    "shared scale": Case(shared_scale, (Y, GROUP), ("u",)),
    "only slopes": Case(only_slopes, (Y_LINES, X, GROUP), ("b",), objective="map"),
    "paired comparison": Case(paired_comparison, (Y_PAIRS, *PAIRS), ("u",)),
    "vector effects": Case(vector_effects, (Y_PLANE, GROUP), ("u",)),
    "known scales": Case(known_scales, (EFFECT, ERROR), ("theta",), objective="map"),
    "ridge": Case(
        ridge, (normal(34, 40, 4) @ normal(35, 4) + normal(36, 40), normal(34, 40, 4)), ("beta",)
    ),
    "fixed loadings": Case(fixed_loadings, (X_FACTORS,), ("z",)),
    "factor analysis": Case(factor_analysis, (X_FACTORS,), ("z",), identified=False),
    "factor analysis with gaps": Case(
        factor_analysis, (X_FACTORS, ENTRIES), ("z",), identified=False
    ),
    "multivariate factors": Case(multivariate_factors, (X_FACTORS,), ("z",), identified=False),
    "ppca": Case(ppca, (X_FACTORS,), ("z",), identified=False),
    "local level": Case(local_level, (SERIES,), steps("level", T)),
    "local level with gaps": Case(local_level, (SERIES,), steps("level", T), kwargs={"gaps": GAPS}),
    "autoregression": Case(autoregression, (SERIES,), steps("state", T)),
    "local trend": Case(
        local_trend, (SERIES,), steps("level", T) + steps("slope", T), objective="map"
    ),
    "vector chain": Case(vector_chain, (Y_TURNING,), steps("state", 12), objective="map"),
    "many series": Case(many_series, (SEVERAL,), steps("level", 8)),
    "kinship": Case(kinship, (Y_KIN, ANIMAL, A), ("u",)),
    "factor mixture": Case(factor_mixture, (X_TWO,), ("z",), objective="map", identified=False),
    "intercept mixture": Case(
        intercept_mixture, (Y_CLASSES,), ("u",), objective="map", identified=False
    ),
}
