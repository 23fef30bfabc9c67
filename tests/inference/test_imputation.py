"""Missing entries filled in: conditional means and draws, against direct computation."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, Fit
from ember.models import (
    bernoulli_mixture,
    categorical_mixture,
    gaussian_mixture,
    poisson_mixture,
)
from tests.inference.gaps import clusters, mixture_moments, posterior, with_gaps
from tests.inference.missing_models import as_numpy

DRAWS = 4000
NAN = torch.nan


def close_to(clusters_apart: float = 1.0) -> Tensor:
    """Rows of two components that overlap, so that both matter to a missing entry."""
    return with_gaps(clusters(60) * torch.tensor([clusters_apart, 0.5, 1.0]), 0.3)


@pytest.fixture(scope="module", params=["full", "tied", "diag", "spherical"])
def gaussian(request: Any) -> tuple[Fit, Tensor]:
    x = close_to()
    return EM(gaussian_mixture, seed=0).fit(x, components=2, covariance=request.param), x


def test_means_are_mixtures_of_conditional_means(gaussian: tuple[Fit, Tensor]) -> None:
    fit, x = gaussian
    new = torch.tensor([[1.0, NAN, NAN], [NAN, NAN, NAN], [NAN, 0.2, 3.0], [0.0, -1.0, 1.0]])
    new = new.double()
    params = as_numpy(fit.params, 3)
    for data, arguments in ((x, ()), (new, (new,))):
        r, _ = posterior(data.numpy(), *params)
        truth = [
            mixture_moments(row, weights, *params[1:])[0]
            for row, weights in zip(data.numpy(), r, strict=True)
        ]
        filled = fit.impute(*arguments)
        np.testing.assert_allclose(filled, np.array(truth), rtol=1e-9, atol=1e-9)
        shown = ~data.isnan()
        assert torch.equal(filled[shown], data[shown])


def test_draws_have_the_moments_of_the_conditional_distribution(
    gaussian: tuple[Fit, Tensor],
) -> None:
    fit, _ = gaussian
    new = torch.tensor([[1.0, NAN, NAN], [NAN, NAN, NAN], [2.0, -1.0, NAN]]).double()
    draws = fit.impute(new, draws=DRAWS, seed=3)
    assert draws.shape == (DRAWS, 3, 3)
    params = as_numpy(fit.params, 3)
    r, _ = posterior(new.numpy(), *params)
    for i, row in enumerate(new.numpy()):
        mean, spread = mixture_moments(row, r[i], *params[1:])
        found = draws[:, i].numpy()
        # Five standard errors; those of a variance with room for two separate components.
        variance = np.diag(spread).clip(0.0)
        error = np.sqrt(variance / DRAWS)
        assert np.all(np.abs(found.mean(0) - mean) <= 5.0 * error + 1e-12)
        bound = 5.0 * np.sqrt(3.0 * np.outer(variance, variance) / DRAWS)
        assert np.all(np.abs(np.cov(found.T, bias=True) - spread) <= bound + 1e-12)


def test_draws_repeat_with_a_seed_and_vary_without() -> None:
    x = close_to()
    fit = EM(gaussian_mixture, seed=0).fit(x, components=2)
    first, again = fit.impute(draws=2, seed=5), fit.impute(draws=2, seed=5)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, fit.impute(draws=2))
    assert torch.equal(first[:, ~x.isnan()], x[~x.isnan()].expand(2, -1))
    state = torch.get_rng_state()
    fit.impute(draws=2, seed=5)
    assert torch.equal(state, torch.get_rng_state())


def test_complete_data_come_back_as_they_are() -> None:
    x = clusters(30)
    fit = EM(gaussian_mixture, seed=0).fit(x, components=2)
    assert torch.equal(fit.impute(), x)
    assert torch.equal(fit.impute(draws=3), x.expand(3, *x.shape))


def test_counts_and_answers_get_conditional_means_and_whole_draws() -> None:
    counts = with_gaps(clusters(60).abs().round())
    answers = with_gaps((clusters(60).abs() > 2.0).double())
    for model, x, site in (
        (poisson_mixture, counts, "rates"),
        (bernoulli_mixture, answers, "probs"),
    ):
        fit = EM(model, seed=0).fit(x, components=2)
        r = fit.posterior("assignment").probs
        truth = torch.where(x.isnan(), r @ fit.params[site], x)
        torch.testing.assert_close(fit.impute(), truth, rtol=1e-9, atol=1e-9)
        draws = fit.impute(draws=DRAWS // 2, seed=0)
        assert torch.equal(draws, draws.round())
        error = (draws.mean(0) - truth).abs()
        deviation = draws.std(0) / (DRAWS // 2) ** 0.5
        assert bool((error <= 6.0 * deviation + 1e-9).all())


def test_a_single_column_of_counts() -> None:
    x = torch.tensor([0.0, 1.0, NAN, 9.0, 11.0, NAN, 0.0, 8.0], dtype=torch.float64)
    fit = EM(poisson_mixture, seed=0).fit(x, components=2)
    filled = fit.impute()
    mean = float(fit.params["weights"] @ fit.params["rates"])
    assert filled[x.isnan()].tolist() == pytest.approx([mean, mean], rel=1e-9)
    assert torch.equal(filled[~x.isnan()], x[~x.isnan()])


@pytest.mark.parametrize("same", [True, False], ids=["one table", "a site for each item"])
def test_categories_get_the_most_probable_one(same: bool) -> None:
    levels = [3, 3, 3] if same else [3, 4, 2]
    generator = torch.Generator().manual_seed(1)
    codes = [torch.randint(n, (40,), generator=generator).double() for n in levels]
    x = with_gaps(torch.stack(codes, 1), 0.3)
    fit = EM(categorical_mixture, seed=0).fit(x, components=2, levels=levels)
    r = fit.posterior("assignment").probs
    filled, draws = fit.impute(), fit.impute(draws=DRAWS // 4, seed=0)
    assert isinstance(filled, dict) is not same
    for j in range(3):
        table = fit.params["probs"][:, j] if same else fit.params[f"probs_{j}"]
        probs = r @ table
        truth = torch.where(x[:, j].isnan(), probs.argmax(1), x[:, j].nan_to_num().long())
        column = filled[:, j] if same else filled[f"x_{j}"]
        assert torch.equal(column, truth)
        drawn = draws[:, :, j] if same else draws[f"x_{j}"]
        share = torch.nn.functional.one_hot(drawn, levels[j]).double().mean(0)
        gone = x[:, j].isnan()
        assert float((share - probs)[gone].abs().max()) < 5.0 * 0.5 / (DRAWS // 4) ** 0.5
        assert torch.equal(drawn[:, ~gone], truth[~gone].expand(len(drawn), -1))


def two_views(x: Tensor, y: Tensor) -> None:
    """Two observed sites that share a latent."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("components", 2):
        left = pyro.sample("left", dist.Normal(0.0, 9.0))
        right = pyro.sample("right", dist.Normal(0.0, 9.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(left[z], 0.5), obs=x)
        pyro.sample("y", dist.Normal(right[z], 0.5), obs=y)


def test_draws_are_joint_over_sites() -> None:
    # Given nothing else, x and y of a row differ only by the noise within a component.
    generator = torch.Generator().manual_seed(0)
    side = 3.0 * (torch.arange(40) % 2 * 2.0 - 1.0).double()
    x, y = (side + 0.5 * torch.randn(40, generator=generator).double() for _ in range(2))
    x[0] = y[0] = NAN
    fit = EM(two_views, seed=0).fit(x, y)
    draws = fit.impute(draws=400, seed=0)
    assert set(draws) == {"x", "y"}
    together = torch.sign(draws["x"][:, 0]) == torch.sign(draws["y"][:, 0])
    assert bool(together.all())
    assert 0.3 < float((draws["x"][:, 0] > 0).double().mean()) < 0.7
    means = fit.impute()
    weights = fit.params["weights"]
    assert float(means["x"][0]) == pytest.approx(float(weights @ fit.params["left"]), rel=1e-9)


def chain(x: Tensor) -> None:
    """Two latents, the second given the first; each has data."""
    with pyro.plate("states", 2):
        step = pyro.sample("step", dist.Beta(2.0, 2.0))
        locs = pyro.sample("locs", dist.Normal(0.0, 9.0))
    with pyro.plate("rows", len(x)):
        a = pyro.sample("a", dist.Bernoulli(0.5)).long()
        pyro.sample("first", dist.Normal(locs[a], 0.5), obs=x[:, 0])
        b = pyro.sample("b", dist.Bernoulli(step[a])).long()
        pyro.sample("second", dist.Normal(locs[b], 0.5), obs=x[:, 1])


def test_latents_are_drawn_from_their_joint_posterior() -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.arange(60) % 2
    b = torch.where(torch.rand(60, generator=generator) < 0.9, a, 1 - a)
    signs = torch.stack([a, b], 1).double() * 6.0 - 3.0
    x = signs + 0.5 * torch.randn(60, 2, generator=generator).double()
    x[0], x[1, 1] = NAN, NAN
    start = {"locs": torch.tensor([-3.0, 3.0]), "step": torch.tensor([0.2, 0.8])}
    fit = EM(chain, init=start).fit(x)
    draws = fit.impute(draws=600, seed=0)
    up = {name: (value[:, 0] > 0).double() for name, value in draws.items()}
    agree = float((up["first"] == up["second"]).double().mean())
    step = fit.params["step"]
    truth = float(0.5 * (1.0 - step[0]) + 0.5 * step[1])
    assert agree == pytest.approx(truth, abs=5.0 * 0.5 / 600**0.5)
    means = fit.impute()
    probability = step[1] if x[1, 0] > 0 else step[0]
    locs = fit.params["locs"]
    expected = probability * locs[1] + (1.0 - probability) * locs[0]
    assert float(means["second"][1]) == pytest.approx(float(expected), rel=1e-5)


def test_a_distribution_without_a_mean_is_drawn_from_only() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Cauchy(loc, 1.0), obs=x)

    x = torch.tensor([0.3, NAN, -1.0, 0.4, 0.9], dtype=torch.float64)
    fit = EM(model, seed=0).fit(x)
    with pytest.raises(ValueError, match=r"'x' \(Cauchy\) has no finite mean.*draws"):
        fit.impute()
    draws = fit.impute(draws=500, seed=0)
    assert float(draws[:, 1].median()) == pytest.approx(float(fit.params["loc"]), abs=0.4)


@pytest.mark.parametrize("draws", [0, -1, 2.5, True])
def test_bad_numbers_of_draws(draws: Any) -> None:
    fit = EM(gaussian_mixture, seed=0).fit(close_to(), components=2)
    with pytest.raises((TypeError, ValueError), match="draws"):
        fit.impute(draws=draws)
