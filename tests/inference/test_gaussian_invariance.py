"""What must not matter to Gaussian latents: names, order, weights, pieces, the way of writing."""

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ember.inference import EM
from tests.inference.dense_gaussian import dense
from tests.inference.gaussian_fits import TOLERANCE, close, em_of, fit_at, fitted
from tests.inference.gaussian_groups import (
    GROUP,
    ITEM,
    SHOWN,
    Y_CROSSED,
    Y,
    crossed,
    masked,
    random_intercept,
)
from tests.inference.gaussian_models import CASES
from tests.inference.gaussian_rows import X_FACTORS, factor_analysis
from tests.inference.gaussian_sites import GAUSSIAN

# -- what must not matter --------------------------------------------------------------------------


def permuted(codes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The codes under other names, and the new name of each old one."""
    count = int(codes.max()) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[codes], order


def test_names_of_groups_do_not_matter() -> None:
    case = CASES["crossed"]
    params = case.params(1)
    (group, u_order), (item, w_order) = permuted(GROUP, 0), permuted(ITEM, 1)
    moved = dataclasses.replace(case, args=(Y_CROSSED, group, item))
    one, two = fit_at(case, params), fit_at(moved, params)
    for latent, order in (("u", u_order), ("w", w_order)):
        close(two.posterior(latent).mean[order], one.posterior(latent).mean)
        close(two.posterior(latent).variance[order], one.posterior(latent).variance)


def test_the_order_of_rows_does_not_matter() -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    params = CASES["crossed"].params(1)
    em = EM(crossed, "mle")
    one = em.e_step(params, Y_CROSSED, GROUP, ITEM)
    two = em.e_step(params, Y_CROSSED[order], GROUP[order], ITEM[order])
    assert two.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-11)
    after = em.m_step(one)
    for site, value in em.m_step(two).items():
        close(value, after[site])


def test_rows_that_count_twice_are_rows_written_twice() -> None:
    case = CASES["weighted"]
    params = case.params(1)
    weight = 1.0 + (torch.arange(40) % 2).double()
    rows = torch.arange(40).repeat_interleave(weight.long())
    em = EM(case.model, "mle")
    one = em.e_step(params, Y, GROUP, weight)
    two = em.e_step(params, Y[rows], GROUP[rows], torch.ones(len(rows)).double())
    assert one.log_likelihood == pytest.approx(two.log_likelihood, rel=TOLERANCE)
    after = em.m_step(two)
    for site, value in em.m_step(one).items():
        close(value, after[site])


def weighted_factors(x: Tensor, weight: Tensor) -> None:
    """Factor analysis of rows that count, with their factors, more than once."""
    with poutine.scale(scale=weight):
        factor_analysis(x)


def test_rows_with_their_own_latents_can_count_twice() -> None:
    params = CASES["factor analysis"].params(1)
    weight = 1.0 + (torch.arange(50) % 3).double()
    rows = torch.arange(50).repeat_interleave(weight.long())
    em = EM(weighted_factors, "mle")
    one = em.e_step(params, X_FACTORS, weight)
    truth = dense(factor_analysis, ["z"], params, X_FACTORS[rows]).log_evidence
    assert one.log_likelihood == pytest.approx(float(truth), rel=TOLERANCE)
    after = EM(factor_analysis, "mle")
    expected = after.m_step(after.e_step(params, X_FACTORS[rows]))
    for site, value in em.m_step(one).items():
        close(value, expected[site])


def test_a_row_that_is_missing_is_a_row_that_is_left_out() -> None:
    params = CASES["masked"].params(1)
    gappy = torch.where(SHOWN, Y, torch.nan)
    left = EM(random_intercept, "mle").e_step(params, Y[SHOWN], GROUP[SHOWN])
    for model, args in ((random_intercept, (gappy, GROUP)), (masked, (Y, GROUP, SHOWN))):
        em = EM(model, "mle")
        stats = em.e_step(params, *args)
        assert stats.log_likelihood == pytest.approx(left.log_likelihood, rel=TOLERANCE)
        after = EM(random_intercept, "mle").m_step(left)
        for site, value in em.m_step(stats).items():
            close(value, after[site])


@pytest.mark.parametrize(
    "name", ["factor analysis", "factor analysis with gaps", "ppca", "known scales"]
)
def test_statistics_of_pieces_add_up(name: str) -> None:
    case = CASES[name]
    params = case.params(1)
    em = em_of(case)
    whole = em.e_step(params, *case.args, **case.kwargs)
    half = len(case.args[0]) // 2
    first = em.e_step(params, *(each[:half] for each in case.args), **case.kwargs)
    second = em.e_step(params, *(each[half:] for each in case.args), **case.kwargs)
    pieces = first + second
    assert pieces.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-11)
    after = em.m_step(whole)
    for site, value in em.m_step(pieces).items():
        close(value, after[site])


def test_statistics_of_whole_groups_add_up() -> None:
    params = CASES["random intercept"].params(1)
    em = EM(random_intercept, "mle")
    whole = em.e_step(params, Y, GROUP)
    low = GROUP < 3
    pieces = em.e_step(params, Y[low], GROUP[low]) + em.e_step(params, Y[~low], GROUP[~low] - 3)
    assert pieces.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-11)
    after = em.m_step(whole)
    for site, value in em.m_step(pieces).items():
        close(value, after[site])


@pytest.mark.parametrize("shift", [1e3, 1e6])
@pytest.mark.parametrize("name", ["random intercept", "prior mean", "nested plates"])
def test_data_far_from_the_origin(name: str, shift: float) -> None:
    case = CASES[name]
    params = case.params(1)
    moved = {**params, "mu": params["mu"] + shift}
    here = em_of(case).e_step(params, *case.args)
    there = em_of(case).e_step(moved, case.args[0] + shift, *case.args[1:])
    assert there.log_likelihood == pytest.approx(here.log_likelihood, rel=1e-9)
    start = em_of(case).m_step(here)
    after = em_of(case).m_step(there)
    after["mu"] = after["mu"] - shift
    for site, value in after.items():
        close(value, start[site])


def lines(y: Tensor, x: Tensor, group: Tensor) -> None:
    """A line for each group: its intercept and its slope carry the location of the data."""
    means = pyro.param("means", torch.zeros(2))
    spread = pyro.param("spread", torch.eye(2), constraint=dist.constraints.positive_definite)
    noise = pyro.param("noise", torch.ones(()), constraint=dist.constraints.positive)
    with pyro.plate("groups", 6):
        line = pyro.sample("line", dist.MultivariateNormal(means, spread), infer=GAUSSIAN)
    with pyro.plate("rows", len(y)):
        location = line[group, 0] + line[group, 1] * x
        pyro.sample("y", dist.Normal(location, noise), obs=y)


def walk(y: Tensor, first: float) -> None:
    """A random walk that begins near a known place, and the noise about it."""
    step, noise = (
        pyro.param(name, torch.ones(()), constraint=dist.constraints.positive)
        for name in ("step", "noise")
    )
    level = torch.tensor(first)
    for t in pyro.markov(range(len(y))):
        spread = step if t else 2.0
        level = pyro.sample(f"level_{t}", dist.Normal(level, spread), infer=GAUSSIAN)
        pyro.sample(f"y_{t}", dist.Normal(level, noise), obs=y[t])


@pytest.mark.parametrize("shift", [1e3, 1e6])
def test_fits_far_from_the_origin(shift: float) -> None:
    generator = torch.Generator().manual_seed(1)
    effects, noise = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 2), (40,))
    )
    x = torch.linspace(-1.0, 1.0, 40).double()
    y = effects[GROUP, 0] + effects[GROUP, 1] * x + 0.5 * noise
    one = EM(lines, "mle").fit(y, x, GROUP)
    two = EM(lines, "mle").fit(y + shift * (1.0 + x), x, GROUP)
    assert two.converged
    assert two.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-9)
    close(two.params["means"] - shift, one.params["means"], 1e-6)
    mean = one.posterior("line").mean
    close(two.posterior("line").mean - shift, mean, 1e-6)
    close(two.predictive().mean - shift * (1.0 + x), one.predictive().mean, 1e-6)
    draws = two.latent_samples(4000, seed=0)["line"].mean(0)
    close((draws - shift).mean(0), mean.mean(0), 0.05)
    path = noise[:20].cumsum(0) + 0.5 * noise[20:]
    here = EM(walk, "mle").fit(path, 0.0)
    there = EM(walk, "mle").fit(path + shift, shift)
    assert there.converged
    assert there.log_likelihood == pytest.approx(here.log_likelihood, rel=1e-9)
    close(there.posterior("level").mean - shift, here.posterior("level").mean, 1e-6)


# -- the same density in other words ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("random intercept", "non-centred"),
        ("independent slopes", "slopes as two sites"),
        ("factor analysis", "multivariate factors"),
        ("factor analysis", "fixed loadings"),
    ],
)
def test_two_ways_to_write_a_model_have_one_optimum(one: str, other: str) -> None:
    left, right = (fitted(CASES[name], init=CASES[name].start()) for name in (one, other))
    assert left.log_likelihood == pytest.approx(right.log_likelihood, abs=1e-6)


def test_one_component_is_plain_factor_analysis() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(1)))
        locs = pyro.param("locs", torch.zeros(1, 5))
        loadings = pyro.param("loadings", torch.eye(5, 2)[None] + 0.1)
        psi = pyro.param("psi", torch.ones(1, 5), constraint=dist.constraints.positive)
        with pyro.plate("rows", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            fn = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            z = pyro.sample("z", fn, infer=GAUSSIAN)
            mean = locs[k] + (loadings[k] @ z.unsqueeze(-1)).squeeze(-1)
            pyro.sample("x", dist.Normal(mean, psi[k].sqrt()).to_event(1), obs=x)

    params = CASES["factor analysis"].params(1)
    held = {name: value[None] for name, value in params.items()}
    stats = EM(model, "mle").e_step({**held, "weights": torch.ones(1).double()}, X_FACTORS)
    plain = EM(factor_analysis, "mle").e_step(params, X_FACTORS)
    assert stats.log_likelihood == pytest.approx(plain.log_likelihood, rel=TOLERANCE)
