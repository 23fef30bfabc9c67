"""The two sections of the Law School Admission Test: published estimates of three models."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch

from ember.inference import EM
from ember.inference.fit import Fit
from ember.models import item_response

Cases = dict[str, dict[str, Any]]
Load = Callable[[str], pd.DataFrame]
KINDS = {"2PL": "2pl", "Rasch": "1pl", "Rasch1": "rasch"}  # the case's name to the model's


def estimates(fit: Fit) -> dict[str, torch.Tensor]:
    """The estimates by the names of the cases, one for each item."""
    intercepts = fit.params["intercepts"]
    slopes = fit.params.get("discriminations", torch.ones(()))
    return {
        "discrimination": slopes.expand(intercepts.shape),
        "intercept": intercepts,
        "difficulty": fit.deterministic["difficulties"],
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("section", ["lsat6", "lsat7"])
def test_optimum_at_default_settings(
    section: str, kind: str, reference_data: Load, reference_cases: Cases
) -> None:
    case = reference_cases[f"{section}_{kind}"]
    answers = reference_data(section)[case["columns"]]
    fit = EM(item_response, "mle").fit(answers, model=KINDS[kind])
    assert fit.converged, fit.stop_reason
    expected = case["expected"]
    assert fit.log_likelihood == pytest.approx(expected["loglik"], abs=1e-8)
    for name, found in estimates(fit).items():
        wanted = expected["parameters"][name]
        assert found.tolist() == pytest.approx(wanted, rel=case["tolerance"]["parameter_rel"])
        assert found.tolist() == pytest.approx(wanted, abs=1e-5)


def test_the_prior_keeps_the_estimates_near(reference_data: Load, reference_cases: Cases) -> None:
    case = reference_cases["lsat7_2PL"]
    fit = EM(item_response).fit(reference_data("lsat7"))
    found, wanted = fit.params["discriminations"], case["expected"]["parameters"]["discrimination"]
    assert found.tolist() == pytest.approx(wanted, abs=0.06)
