"""What must hold for any model and any data."""

import warnings
from typing import Any

import hypothesis.strategies as st
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from pyro import poutine
from torch import Tensor

from ember.inference import EM
from tests.inference.examples import EXAMPLES, Example, mixture, mixture_full
from tests.inference.family_cases import CASES, N

few = settings(max_examples=12)
seeds = st.integers(0, 2**16)


def rising(history: Tensor) -> bool:
    return bool((history.diff() >= -1e-9 * (1.0 + history[1:].abs())).all())


def redrawn(case: Any, seed: int) -> Tensor:
    """Other data of the same kind: rows drawn with replacement, rescaled where that is possible."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(N, (N,), generator=generator)
    data: Tensor = case.data[rows]
    noisy = data.is_floating_point() and bool((data != data.round()).any())
    return data * (0.5 + 2.0 * torch.rand(1, generator=generator).item()) if noisy else data


@few
@given(name=st.sampled_from(sorted(CASES)), seed=seeds, objective=st.sampled_from(["map", "mle"]))
def test_the_objective_never_falls_for_any_family(name: str, seed: int, objective: str) -> None:
    case = CASES[name]
    data = redrawn(case, seed)
    start = Example(name, case.model, (data,)).params(seed)
    accelerate = [None, "auto"][seed % 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a collapse is fine here, a fall is not
        em = EM(case.model, objective, init=start, accelerate=accelerate, max_iter=60)
        fit = em.fit(data)
    assert rising(fit.history)
    assert "fell" not in fit.stop_reason
    assert all(bool(torch.isfinite(value).all()) for value in fit.params.values())


@few
@given(name=st.sampled_from(sorted(EXAMPLES)), seed=seeds)
def test_the_objective_never_falls_for_any_structure(name: str, seed: int) -> None:
    example = EXAMPLES[name]
    accelerate = [None, "auto", "squarem", "anderson", "lbfgs"][seed % 5]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        em = EM(example.model, init=example.params(seed), accelerate=accelerate, max_iter=40)
        fit = em.fit(*example.args)
    assert rising(fit.history)
    assert "fell" not in fit.stop_reason


@st.composite
def priors(draw: Any) -> dict[str, float]:
    positive = st.floats(0.2, 20.0)
    return {
        "concentration": draw(st.floats(1.0, 10.0)),
        "shape": draw(st.floats(1.0, 20.0)),
        "rate": draw(positive),
        "kappa": draw(st.floats(1e-3, 20.0)),
        "mean": draw(st.floats(-50.0, 50.0)),
    }


def with_priors(x: Tensor, prior: dict[str, float]) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), prior["concentration"])))
    with pyro.plate("components", 2):
        precisions = pyro.sample("precisions", dist.Gamma(prior["shape"], prior["rate"]))
        loc_scale = (prior["kappa"] * precisions).rsqrt()
        locs = pyro.sample("locs", dist.Normal(prior["mean"], loc_scale))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], precisions[z].rsqrt()), obs=x)


@few
@given(
    prior=priors(),
    data=st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=12),
    accelerate=st.sampled_from([None, "auto"]),
)
def test_the_objective_never_falls_for_any_prior_and_data(
    prior: dict[str, float], data: list[float], accelerate: str | None
) -> None:
    x = torch.tensor(data, dtype=torch.float64)
    fit = EM(with_priors, accelerate=accelerate, seed=0).fit(x, prior)
    assert rising(fit.history)
    assert fit.converged, fit.stop_reason
    assert all(bool(torch.isfinite(value).all()) for value in fit.params.values())


def cloud(seed: int, rows: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, generator=generator, dtype=torch.float64)
    return noise + torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64).repeat(rows // 3)


@few
@given(order=st.permutations([0, 1, 2]), seed=seeds)
def test_permuted_starts_give_permuted_fits(order: list[int], seed: int) -> None:
    x = cloud(seed)
    start = EM(mixture, seed=1).initialise(x)
    # Step for step: where a tolerance ends the loop, rounding decides between two iterations.
    options: dict[str, Any] = {"accelerate": None, "tol": 0.0, "max_iter": 100}
    left = EM(mixture, init=start, **options).fit(x)
    moved = {name: value[order] for name, value in start.items()}
    right = EM(mixture, init=moved, **options).fit(x)
    for name, value in left.params.items():
        torch.testing.assert_close(right.params[name], value[order], rtol=1e-8, atol=1e-8)
    assert right.log_posterior == pytest.approx(left.log_posterior, rel=1e-12)


def weighed(x: Tensor, counts: Tensor) -> None:
    with poutine.scale(scale=1.0):
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        with pyro.plate("components", 2):
            precisions = pyro.sample("precisions", dist.Gamma(3.0, 2.0))
            locs = pyro.sample("locs", dist.Normal(0.0, (0.3 * precisions).rsqrt()))
    with pyro.plate("rows", len(x)), poutine.scale(scale=counts):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], precisions[z].rsqrt()), obs=x)


@few
@given(counts=st.lists(st.integers(1, 5), min_size=12, max_size=12), seed=seeds)
def test_integer_weights_are_repeated_rows(counts: list[int], seed: int) -> None:
    x = cloud(seed, 12)
    weights = torch.tensor(counts)
    repeated = x.repeat_interleave(weights)
    start = EM(mixture, seed=1).initialise(x, 2)
    em = EM(weighed)
    left = em.e_step(start, x, weights.double())
    right = em.e_step(start, repeated, torch.ones(len(repeated)))
    assert left.log_likelihood == pytest.approx(right.log_likelihood, rel=1e-12)
    after = em.m_step(left)
    for name, value in em.m_step(right).items():
        torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-12)
    options: dict[str, Any] = {"init": start, "accelerate": None, "tol": 1e-10, "max_iter": 5000}
    one = EM(weighed, **options).fit(x, weights.double())
    two = EM(weighed, **options).fit(repeated, torch.ones(len(repeated)))
    assert one.log_posterior == pytest.approx(two.log_posterior, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("parts", [2, 3])
def test_statistics_of_parts_add_up(parts: int, shift: float) -> None:
    x = cloud(3) + shift
    params = EM(mixture, seed=1).initialise(x)
    em = EM(mixture)
    whole = em.e_step(params, x)
    pieces = [em.e_step(params, piece) for piece in x.tensor_split(parts)]
    total = sum(pieces[1:], start=pieces[0])
    assert total.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
    assert total.log_prior == pytest.approx(whole.log_prior, rel=1e-12)
    left, right = em.m_step(total), em.m_step(whole)
    torch.testing.assert_close(left["weights"], right["weights"], rtol=1e-10, atol=0)
    torch.testing.assert_close(left["precisions"], right["precisions"], rtol=1e-7, atol=0)
    torch.testing.assert_close(left["locs"], right["locs"], rtol=1e-13, atol=1e-8)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_statistics_of_vectors_add_up(shift: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    params = EM(mixture_full, seed=1).initialise(x)
    params = {**params, "locs": params["locs"] + shift}
    em = EM(mixture_full, "mle")
    whole = em.e_step(params, x + shift)
    halves = em.e_step(params, x[:7] + shift) + em.e_step(params, x[7:] + shift)
    left, right = em.m_step(halves), em.m_step(whole)
    torch.testing.assert_close(left["locs"], right["locs"], rtol=1e-13, atol=1e-8)
    torch.testing.assert_close(left["precisions"], right["precisions"], rtol=1e-7, atol=1e-9)
    near = em.m_step(em.e_step({**params, "locs": params["locs"] - shift}, x))
    torch.testing.assert_close(right["precisions"], near["precisions"], rtol=1e-6, atol=1e-8)


# Models whose rows are the first dim of each of their data.
SPLITTABLE = [
    "mixture", "mixture_full", "diagonal_mixture", "several_latents", "factorial", "additive",
    "chain_of_two", "tree", "chains", "labelled", "labelled_by_masks", "shared_scale", "one_hot",
    "switch", "zero_inflated", "local_parameters", "unnormalised", "experts",
]  # fmt: skip


@pytest.mark.parametrize("name", SPLITTABLE)
def test_statistics_of_every_structure_add_up(name: str) -> None:
    example = EXAMPLES[name]
    params = example.params(2)
    em = EM(example.model)
    whole = em.e_step(params, *example.args)
    left = em.e_step(params, *(value[:1] for value in example.args))
    right = em.e_step(params, *(value[1:] for value in example.args))
    both = left + right
    assert both.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-11)
    one, two = em.m_step(whole), em.m_step(both)
    for site, value in one.items():
        torch.testing.assert_close(two[site], value, rtol=1e-6, atol=1e-7)
    three = em.m_step(right + left)  # in whatever order
    for site, value in one.items():
        torch.testing.assert_close(three[site], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["normal, normal-gamma", "mvn, normal-wishart", "poisson"])
def test_float32_and_float64_data_agree(name: str) -> None:
    case = CASES[name]
    single = case.data.float()
    left = EM(case.model, seed=0).fit(single)
    right = EM(case.model, seed=0).fit(single.double())
    assert left.log_posterior == pytest.approx(right.log_posterior, rel=1e-12)
    for site, value in right.params.items():
        assert left.params[site].dtype == torch.float64
        torch.testing.assert_close(left.params[site], value, rtol=1e-9, atol=1e-12)
    double = EM(case.model, init=right.params).fit(case.data)
    assert double.log_posterior == pytest.approx(left.log_posterior, rel=1e-4)


@few
@given(seed=seeds, factor=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3))
def test_maximum_likelihood_is_equivariant(seed: int, factor: float, shift: float) -> None:
    x = cloud(seed)
    start = EM(mixture, seed=1).initialise(x)
    options: dict[str, Any] = {"accelerate": None, "max_iter": 5, "tol": 1e-15}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left = EM(mixture, "mle", init=start, **options).fit(x)
        moved = {
            "weights": start["weights"],
            "locs": factor * start["locs"] + shift,
            "precisions": start["precisions"] / factor**2,
        }
        right = EM(mixture, "mle", init=moved, **options).fit(factor * x + shift)
    locs = factor * left.params["locs"] + shift
    torch.testing.assert_close(right.params["locs"], locs, rtol=1e-7, atol=1e-7 * factor)
    precisions = left.params["precisions"] / factor**2
    torch.testing.assert_close(right.params["precisions"], precisions, rtol=1e-5, atol=0)


@few
@given(seed=seeds)
def test_posteriors_are_probabilities(seed: int) -> None:
    x = cloud(seed)
    fit = EM(mixture, seed=seed).fit(x)
    probs = fit.posterior("z").probs
    assert bool((probs >= 0.0).all())
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(x), dtype=torch.float64))
    assert torch.equal(fit.predict(), probs.argmax(-1))
    torch.testing.assert_close(fit.params["weights"].sum(), torch.tensor(1.0, dtype=torch.float64))
