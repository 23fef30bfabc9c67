"""Rao's linkage data: 197 animals in four cells, the first of them split by a latent."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM

Cases = dict[str, dict[str, Any]]


def linkage(cell: Tensor) -> None:
    """Each animal falls in one of five cells; the first two look alike."""
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0))
    rest = 0.25 * (1.0 - theta)
    five = torch.stack([torch.full_like(theta, 0.5), 0.25 * theta, rest, rest, 0.25 * theta])
    looks = torch.eye(4)[[0, 0, 1, 2, 3]]
    with pyro.plate("animals", len(cell)):
        z = pyro.sample("z", dist.Categorical(five))
        pyro.sample("cell", dist.Categorical(looks[z]), obs=cell)


def linkage_by_switch(cell: Tensor) -> None:
    """The same, the latent a switch that only animals of the first cell have."""
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0))
    four = torch.stack([0.5 + 0.25 * theta, *[0.25 * (1.0 - theta)] * 2, 0.25 * theta])
    first: Any = cell == 0
    with pyro.plate("animals", len(cell)):
        pyro.sample("cell", dist.Categorical(four), obs=cell)
        with pyro.poutine.mask(mask=first):
            pyro.sample("z", dist.Bernoulli(0.25 * theta / (0.5 + 0.25 * theta)))


@pytest.fixture
def cell(reference_data: Callable[[str], pd.DataFrame]) -> Tensor:
    table = reference_data("linkage")
    counts = torch.tensor(table["count"].to_numpy())
    return torch.arange(4).repeat_interleave(counts)


@pytest.fixture
def case(reference_cases: Cases) -> dict[str, Any]:
    return reference_cases["linkage"]


@pytest.mark.parametrize("objective", ["mle", "map"])
def test_optimum_at_default_settings(cell: Tensor, case: dict[str, Any], objective: str) -> None:
    fit = EM(linkage, objective).fit(cell)
    assert fit.converged
    expected = case["expected"]
    theta = expected["parameters"]["theta"]
    assert float(fit.params["theta"]) == pytest.approx(
        theta, abs=case["tolerance"]["parameter_abs"]
    )
    # Rows say nothing of the multinomial coefficient.
    plain = expected["other"]["loglik_without_multinomial_coefficient"]
    assert fit.log_likelihood == pytest.approx(plain, abs=case["tolerance"]["loglik_abs"])


def test_iterates_from_one_half(cell: Tensor, case: dict[str, Any]) -> None:
    expected = case["expected"]["other"]["em_iterates_from_0.5"]
    em = EM(linkage, "mle")
    params = {"theta": torch.tensor(0.5, dtype=torch.float64)}
    found = []
    for _ in expected:
        params = em.m_step(em.e_step(params, cell))
        found.append(float(params["theta"]))
    assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.filterwarnings("ignore:.*max_iter:RuntimeWarning")
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_plain_em_makes_the_same_iterates(cell: Tensor, case: dict[str, Any], steps: int) -> None:
    start = {"theta": torch.tensor(0.5)}
    fit = EM(linkage, "mle", init=start, accelerate=None, max_iter=steps, tol=1e-15).fit(cell)
    expected = case["expected"]["other"]["em_iterates_from_0.5"][steps - 1]
    assert float(fit.params["theta"]) == pytest.approx(expected, abs=1e-8)


def test_rate_of_convergence(cell: Tensor, case: dict[str, Any]) -> None:
    em = EM(linkage, "mle")
    params = {"theta": torch.tensor(0.5, dtype=torch.float64)}
    thetas = []
    for _ in range(6):
        thetas.append(float(params["theta"]))
        params = em.m_step(em.e_step(params, cell))
    rate = (thetas[5] - thetas[4]) / (thetas[4] - thetas[3])
    expected = case["expected"]["other"]["em_rate_of_convergence"]
    assert rate == pytest.approx(expected, abs=1e-3)


def test_other_ways_to_write_it(cell: Tensor, case: dict[str, Any]) -> None:
    theta = case["expected"]["parameters"]["theta"]
    fit = EM(linkage_by_switch, "mle").fit(cell)
    assert float(fit.params["theta"]) == pytest.approx(theta, abs=1e-6)
