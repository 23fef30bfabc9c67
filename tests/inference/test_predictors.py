"""Arguments that are linear behind a link: logits, logarithms, softmax; and Newton's method."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.objective import score
from ember.inference.numerics.newton import minimise
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.building import build_plan
from ember.inference.reading.matching.arguments import probe_values

N = 30
FAR = 2000.0 + torch.arange(N, dtype=torch.float64)  # a year, say: exp(FAR * 0.7) overflows
Y = (torch.arange(N) % 3).double()


def poisson_far(y: Tensor, x: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson((beta[0] + beta[1] * x).exp()), obs=y)


def logistic_far(y: Tensor, x: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Binomial(2, logits=beta[0] + beta[1] * x), obs=y)


def powers(y: Tensor, x: Tensor) -> None:
    """A mean and a shape, where the distribution wants a rate."""
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Gamma(2.0, 1.0))
        shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        rate = shape[z] / (mean[z] * torch.exp(slope * (x - 2015.0) / 10.0))
        pyro.sample("y", dist.GammaPoisson(shape[z], rate), obs=y)


def softmax(classes: int, reference: bool = False) -> Callable[[Tensor, Tensor], None]:
    rows = classes - reference

    def model(y: Tensor, x: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(rows, 2), 1.0).to_event(2))
        design = torch.stack([torch.ones_like(x), x - 2015.0], 1)
        logits = design @ beta.T + 0.1
        if reference:
            logits = torch.cat([torch.zeros(len(y), 1), logits], 1)
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("y", dist.Poisson(1.0 + z), obs=y)

    return model


MODELS = {
    "poisson": (poisson_far, "y", "rate", 2),
    "logistic": (logistic_far, "y", "probs", 2),
    "powers": (powers, "y", "rate", 3),
    "softmax of 3": (softmax(3), "z", "probs", 2),
    "softmax of 2": (softmax(2), "z", "probs", 2),
    "softmax with a reference": (softmax(3, True), "z", "probs", 2),
    "logistic as softmax": (softmax(2, True), "z", "probs", 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_linear_predictor_is_read_off_and_evaluated_without_the_model(name: str) -> None:
    model, site, argument, width = MODELS[name]
    with sheltered(0):
        plan = build_plan(model, prepare((Y, FAR), {}))
        reference = build_plan(model, prepare((Y, FAR), {}), probing=False)
        density = plan.sites[site].density
        assert density is not None
        found = density.maps[argument][1]
        assert isinstance(found, AffineMap)
        assert found.features.shape[-1] == width
        params = probe_values(plan.structure, 7)
        params = {n: 1e-3 * v if n == "beta" else v for n, v in params.items()}
        ours, theirs = (
            LogEvidence.of(plan).statistics(params),
            LogEvidence.of(reference).statistics(params),
        )
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-9)
        coordinates = Coordinates(plan.structure.parameters)
        torch.testing.assert_close(
            score(ours, coordinates), score(theirs, coordinates), rtol=1e-7, atol=1e-7
        )


def test_a_product_that_is_no_product_of_powers_is_left_to_the_model() -> None:
    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        b = pyro.sample("b", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(a * b + a), obs=y)

    table = EM(model).explain(Y).set_index("site")
    assert "computed from parameters" in str(table["why"]["y"])


def test_regression_on_years_is_fitted_to_the_last_digit() -> None:
    fit = EM(poisson_far, "mle").fit(Y, FAR)
    with sheltered():
        gradient = score(
            LogEvidence.of(fit.plan).statistics(fit.params),
            Coordinates(fit.plan.structure.parameters),
        )
    assert float(gradient.abs().max()) < 1e-6
    assert fit.iterations <= 2


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_newton_descends_from_a_saddle_and_across_scales(scale: float) -> None:
    def double_well(x: Tensor) -> Tensor:
        return (x[0] ** 2 - 1.0) ** 2 + (x[1] / scale - x[0]) ** 2 + 0.0 * x[2]

    found = minimise(double_well, torch.tensor([1e-3, -scale, 5.0], dtype=torch.float64))
    assert found is not None
    assert float(double_well(found)) < 1e-15
    assert float(found[2]) == 5.0  # what the function does not depend on stays
    assert minimise(lambda x: x.sqrt().sum(), torch.zeros(2, dtype=torch.float64)) is None
