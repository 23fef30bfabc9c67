"""The sweep over a model's options: criteria against independent numbers, failures, pictures."""

import io
import math

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ember.inference import EM, select
from ember.inference.queries.criteria import free_parameters
from ember.inference.selection import criteria
from ember.models import gaussian_mixture, hidden_markov_poisson, poisson_mixture


@pytest.fixture
def iris(reference_data: object) -> Tensor:
    frame: pd.DataFrame = reference_data("iris")  # type: ignore[operator]
    return torch.from_numpy(frame.iloc[:, :4].to_numpy(dtype=float))


def test_criteria_are_those_of_scikit_learn(iris: Tensor) -> None:
    fit = EM(gaussian_mixture, "mle", seed=0, restarts=5).fit(iris, components=2)
    rival = GaussianMixture(2, reg_covar=0.0, tol=1e-10, max_iter=1000, random_state=0)
    rival.fit(iris.numpy())
    measures = criteria(fit)
    assert measures["parameters"] == rival._n_parameters() == 29
    assert measures["bic"] == pytest.approx(rival.bic(iris.numpy()), rel=1e-8)
    assert measures["aic"] == pytest.approx(rival.aic(iris.numpy()), rel=1e-8)
    t = fit.posterior("assignment").probs
    entropy = -float(torch.special.xlogy(t, t).sum())
    assert measures["icl"] == pytest.approx(measures["bic"] + 2.0 * entropy, rel=1e-12)


@pytest.mark.parametrize(
    ("covariance", "count"), [("full", 29), ("tied", 19), ("diag", 17), ("spherical", 11)]
)
def test_free_parameters(iris: Tensor, covariance: str, count: int) -> None:
    fit = EM(gaussian_mixture, seed=0).fit(iris, components=2, covariance=covariance)
    assert free_parameters(fit.plan) == count


def test_bic_prefers_two_clusters_of_iris_as_published(iris: Tensor) -> None:
    # mclust's best two are VEV and VVV with two components; BIC in the other sign -574.02.
    chosen = select(
        gaussian_mixture,
        iris,
        components=range(1, 5),
        covariance=["full", "diag"],
        em={"objective": "mle", "seed": 0, "restarts": 3},
    )
    assert chosen.options == {"components": 2, "covariance": "full"}
    assert len(chosen.table) == 8
    assert float(chosen.table["bic"].min()) == pytest.approx(574.018, abs=1e-3)
    assert "components=2" in str(chosen)
    buffer = io.BytesIO()
    chosen.plot().savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_weights_count_rows() -> None:
    x = torch.tensor([0.0, 1, 2, 8, 9, 11])
    frequency = torch.tensor([3.0, 1, 2, 1, 2, 3])
    weighted = EM(poisson_mixture, seed=0).fit(x, components=2, frequency=frequency)
    repeated = EM(poisson_mixture, seed=0).fit(
        torch.repeat_interleave(x, frequency.long()), components=2
    )
    left, right = criteria(weighted), criteria(repeated)
    for name, value in right.items():
        assert left[name] == pytest.approx(value, rel=1e-6), name


def test_steps_of_a_chain_are_observations() -> None:
    x = torch.tensor([1.0, 0, 2, 9, 8, 10, 1, 0])
    fit = EM(hidden_markov_poisson, seed=0).fit(x, states=2)
    measures = criteria(fit)
    expected = -2.0 * fit.log_likelihood + measures["parameters"] * math.log(8)
    assert measures["bic"] == pytest.approx(expected)


def test_held_out_likelihood_chooses_and_repeats() -> None:
    torch.manual_seed(1)
    x = torch.poisson(torch.tensor([2.0, 12.0]).repeat(40))
    chosen = [
        select(poisson_mixture, x, components=[1, 2], criterion="held_out", folds=4, em={"seed": 3})
        for _ in range(2)
    ]
    assert chosen[0].options == {"components": 2}
    pd.testing.assert_frame_equal(chosen[0].table, chosen[1].table)


def test_one_failing_cell_does_not_end_the_sweep() -> None:
    def model(x: Tensor, components: int) -> None:
        if components == 2:
            raise ValueError("two will not do")
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)

    chosen = select(model, torch.randn(9), components=[1, 2, 3])
    assert "two will not do" in str(chosen.table["error"][1])
    assert sorted(chosen.fits) == [0, 2]


def test_bad_sweeps() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="nothing to choose"):
        select(poisson_mixture, x, components=2)
    with pytest.raises(ValueError, match="criterion='best' is unknown"):
        select(poisson_mixture, x, components=[1, 2], criterion="best")
    with pytest.raises(ValueError, match="needs folds"):
        select(poisson_mixture, x, components=[1, 2], criterion="held_out")
    with pytest.raises(ValueError, match="every combination failed"):
        select(poisson_mixture, x, components=[7, 8])
