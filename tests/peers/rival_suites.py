"""Runs the test suites that scikit-learn and hmmlearn install, with Ember's estimators in them.

Run: .venv/bin/python -m tests.peers.rival_suites
The suites are those of the installed packages; their names for the rival's classes are bound to
Ember's. Each test that a deliberate difference makes fail is listed below with the difference, and
is left out; all others have to pass.
"""

import os
import sys
import types
from collections.abc import Sequence
from typing import Any

import hmmlearn.hmm
import pytest

from ember.inference import estimators

__all__ = ["main"]


TAKEN_OUT = {  # arguments that ours have no use for
    *("reg_covar", "verbose_interval", "min_covar", "startprob_prior", "transmat_prior"),
    *("means_prior", "means_weight", "covars_prior", "covars_weight", "emissionprob_prior"),
}


def adapted(ours: type) -> type:
    """Ours with maximum likelihood for a default, and without what it has no use for."""

    class Adapted(ours):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            known = {name: value for name, value in options.items() if name not in TAKEN_OUT}
            super().__init__(*args, **{"objective": "mle", **known})

        @classmethod
        def _get_param_names(cls) -> list[str]:
            return list(ours._get_param_names())  # type: ignore[attr-defined]

    Adapted.__name__ = ours.__name__
    return Adapted


CHAINS = types.SimpleNamespace(
    **{
        **vars(hmmlearn.hmm),
        "GaussianHMM": adapted(estimators.GaussianHMM),
        "CategoricalHMM": adapted(estimators.CategoricalHMM),
    }
)
SUITES: dict[str, dict[str, Any]] = {
    "sklearn.mixture.tests.test_gaussian_mixture": {
        "GaussianMixture": adapted(estimators.GaussianMixture),
    },
    "hmmlearn.tests.test_gaussian_hmm": {"hmm": CHAINS},
    "hmmlearn.tests.test_categorical_hmm": {"hmm": CHAINS},
}
DIFFERENCES: dict[str, str] = {
    "test_gaussian_mixture_attributes": "there is no reg_covar",
    "test_regularisation": "there is no reg_covar: components that collapse are named instead",
    "test_multiple_init": "the same optimum from several starts, to rounding",
    "test_monotonic_likelihood": "asks for monotony to the last bit, single steps accelerated",
    "test_warm_start": "counts steps of plain EM; ours are accelerated",
    "test_fit_zero_variance": "data without spread in a column are refused in a sentence",
    "test_fit_with_priors": "priors are those of ember.models, with other hyperparameters",
    "test_underflow_from_scaling": "expects the rival's fit to fail, and ours does not",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": (
        "counts calls of the namesake's own M-step"
    ),
}


class Bound:
    """A plugin that binds the names and leaves out what differs."""

    def __init__(self) -> None:
        self.left_out: list[str] = []

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        kept = []
        for item in items:
            for name, ours in SUITES[item.module.__name__].items():
                setattr(item.module, name, ours)
            if item.originalname in DIFFERENCES:
                self.left_out.append(item.name)
            else:
                kept.append(item)
        items[:] = kept


def main(arguments: Sequence[str] = ()) -> int:
    """Runs all suites, and says how many tests were left out."""
    plugin = Bound()
    options = ["--pyargs", *SUITES, "-q", "-c", os.devnull, "-p", "no:cacheprovider", *arguments]
    code = pytest.main(options, plugins=[plugin])
    print(f"{len(plugin.left_out)} tests left out for {len(DIFFERENCES)} deliberate differences")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
