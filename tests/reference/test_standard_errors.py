"""Published standard errors; boundaries and models that are known not to be identified."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.models import bernoulli_mixture, item_response, linear_mixed_model

Cases = dict[str, dict[str, Any]]
Load = Callable[[str], pd.DataFrame]


def linkage(cell: Tensor) -> None:
    """Each animal falls in one of five cells; the first two look alike."""
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0))
    rest = 0.25 * (1.0 - theta)
    five = torch.stack([torch.full_like(theta, 0.5), 0.25 * theta, rest, rest, 0.25 * theta])
    with pyro.plate("animals", len(cell)):
        z = pyro.sample("z", dist.Categorical(five))
        pyro.sample("cell", dist.Categorical(torch.eye(4)[[0, 0, 1, 2, 3]][z]), obs=cell)


def test_linkage(reference_data: Load, reference_cases: Cases) -> None:
    """Louis (1982): 0.0515; and one less the least curvature is EM's rate of convergence."""
    counts = torch.tensor(reference_data("linkage")["count"].to_numpy())
    fit = EM(linkage, "mle").fit(torch.arange(4).repeat_interleave(counts))
    assert float(fit.standard_errors()["theta"]) == pytest.approx(0.0515, abs=5e-5)
    theta = float(fit.params["theta"])
    cells = counts / torch.tensor([2 + theta, 1 - theta, 1 - theta, theta]).square()
    assert float(fit.standard_errors()["theta"]) == pytest.approx(float(cells.sum()) ** -0.5)
    rate = reference_cases["linkage"]["expected"]["other"]["em_rate_of_convergence"]
    assert fit.certificate is not None
    assert fit.certificate.curvature is not None
    assert 1.0 - fit.certificate.curvature == pytest.approx(rate, abs=1e-4)


def test_law_school_admission_test(reference_data: Load) -> None:
    """The two-parameter model as the R package ltm prints it (Rizopoulos 2006)."""
    fit = EM(item_response, "mle").fit(reference_data("lsat6"), model="2pl")
    errors = fit.standard_errors()
    discriminations, difficulties = errors["discriminations"], errors["difficulties"]
    expected = [0.2581, 0.1867, 0.2326, 0.1852, 0.2100]
    assert discriminations.tolist() == pytest.approx(expected, abs=3e-4)
    expected = [0.8669, 0.3073, 0.0997, 0.4341, 0.8700]
    assert difficulties.tolist() == pytest.approx(expected, abs=1.5e-3)


def test_sleep_study(reference_data: Load) -> None:
    """The fixed effects as lme4 prints them with REML=FALSE."""
    table = reference_data("sleepstudy")
    days = table[["Days"]]
    design = days.assign(one=1.0)[["one", "Days"]]
    fit = EM(linear_mixed_model, "mle").fit(
        table["Reaction"], X=days, groups=table["Subject"].astype("category").cat.codes,
        design=design,
    )  # fmt: skip
    errors = fit.standard_errors()["coefficients"]
    assert errors.tolist() == pytest.approx([6.632, 1.502], abs=5e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_at_their_boundary(
    classes: int, reference_data: Load, reference_cases: Cases
) -> None:
    case = reference_cases[f"carcinoma_K{classes}"]
    em = EM(bernoulli_mixture, "mle", restarts=8, seed=0)
    fit = em.fit(reference_data("carcinoma")[case["columns"]], components=classes)
    assert fit.log_likelihood == pytest.approx(case["expected"]["loglik"], abs=1e-3)
    with pytest.warns(RuntimeWarning, match=r"probs\[.*at a boundary"):
        errors = fit.standard_errors()
    at_boundary = errors["probs"].isnan()
    assert int(at_boundary.sum()) == case["expected"]["other"]["boundary_thetas"]
    probs = fit.params["probs"]
    assert bool(((probs < 1e-4) | (probs > 1 - 1e-4))[at_boundary].all())
    assert bool(errors["weights"].isfinite().all())


def test_classes_that_the_data_do_not_identify(
    reference_data: Load, reference_cases: Cases
) -> None:
    """Goodman (1974): as many cells as parameters, and an information of lower rank."""
    case = reference_cases["values_K3"]
    em = EM(
        bernoulli_mixture, "mle", restarts=3, seed=0, tol=1e-12, max_iter=5000, accelerate="squarem"
    )  # which stays inside: the ridge of maxima ends at a boundary, where fewer are left open
    fit = em.fit(reference_data("values")[case["columns"]], components=3)
    assert fit.log_likelihood == pytest.approx(case["expected"]["loglik"], abs=2e-3)
    with pytest.warns(RuntimeWarning, match="the data do not identify"):
        errors = fit.standard_errors()
    assert bool(errors["probs"].isnan().all())
    fit = EM(bernoulli_mixture, "mle", seed=0).fit(
        reference_data("values")[case["columns"]], components=2
    )
    assert all(bool(each.isfinite().all()) for each in fit.standard_errors().values())
