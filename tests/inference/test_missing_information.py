"""Newton's steps on plain mixtures: the information is exact, and the way is EM's, but shorter."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation import missing_information
from ember.inference.expectation.kernels import sweep
from ember.inference.expectation.kernels.mixture import MixtureKernel
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.expectation.missing_information import MissingInformation
from ember.inference.iteration.acceleration.em_map import EMMap
from ember.inference.iteration.acceleration.newton import Newton
from ember.inference.maximisation.information import Information
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import natural_parameters, values_of
from ember.models import (
    bernoulli_mixture,
    gaussian_mixture,
    hidden_markov_gaussian,
    poisson_mixture,
    regression_mixture,
)

COUNTS = torch.tensor([0, 1, 1, 2, 3, 7, 8, 9, 9, 12, 2, 0])
ANSWERS = torch.tensor([[0, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0]] * 3)


def overlapping(rows: int = 300, columns: int = 2, components: int = 3) -> Tensor:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(components, columns))
    x = centres[generator.integers(components, size=rows)]
    return torch.from_numpy(x + generator.normal(size=(rows, columns)))


def regression() -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    x = overlapping(60, 2, 2)
    y = x @ torch.tensor([1.0, -2.0], dtype=x.dtype) + x[:, 0] ** 2
    return (y, x), {"components": 2}


Case = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
CASES: dict[str, Case] = {
    **{
        covariance: (
            gaussian_mixture,
            (overlapping(),),
            {"components": 3, "covariance": covariance},
        )
        for covariance in ("full", "tied", "diag", "spherical")
    },
    "weighted": (
        gaussian_mixture,
        (overlapping(40),),
        {"components": 2, "frequency": torch.arange(40.0) % 4},
    ),
    "counts": (poisson_mixture, (COUNTS,), {"components": 2}),
    "classes": (bernoulli_mixture, (ANSWERS,), {"components": 2}),
    "regressions": (regression_mixture, *regression()),
}


def read(name: str, objective: str = "map") -> tuple[Plan, EMMap, dict[str, Tensor]]:
    model, args, options = CASES[name]
    em = EM(model, seed=0, objective=objective)
    plan = em.plan(*args, **options)
    return plan, EMMap.of(plan), em.initialise(plan)


def minus_hessian(plan: Plan, em: EMMap, params: dict[str, Tensor]) -> Tensor:
    """By two derivatives of the log evidence itself."""

    def objective(free: Tensor) -> Tensor:
        at = em.coordinates.unflatten(free)
        return LogEvidence.of(plan)(at) + plan.prior.log_prob(at)

    hessian = torch.autograd.functional.hessian(objective, em.coordinates.flatten(params))
    assert isinstance(hessian, Tensor)
    return -hessian


@pytest.mark.parametrize("name", CASES)
def test_the_observed_information_is_minus_the_hessian(name: str) -> None:
    plan, em, params = read(name)
    statistics = em.e_step(em.m_step(em.e_step(params)))
    assert em.missing is not None
    found = Information.with_missing(em.coordinates, statistics, em.missing)
    assert found is not None
    truth = minus_hessian(plan, em, statistics.params)
    assert torch.allclose(found.observed, truth, rtol=1e-8, atol=1e-8 * float(truth.abs().max()))


def test_parts_and_chunks_of_the_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    _, em, params = read("weighted")
    point = em.coordinates.flatten(params)
    assert em.missing is not None
    whole = em.missing(em.coordinates, point)
    _, em, _ = read("weighted")  # which has kept nothing of the rows
    monkeypatch.setattr(sweep, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(sweep, "ALIGNED", 3)
    monkeypatch.setattr(sweep, "ALONE", 1)
    assert em.missing is not None
    parts = em.missing(em.coordinates, point)
    assert whole is not None
    assert parts is not None
    assert torch.allclose(whole, parts, rtol=1e-12, atol=1e-12)


def test_repeated_rows_hide_what_their_weights_say() -> None:
    x, counts = overlapping(40), torch.arange(40) % 4
    weighted, repeated = (
        EM(gaussian_mixture, seed=0).plan(rows, components=2, **options)
        for rows, options in (
            (x, {"frequency": counts}),
            (x.repeat_interleave(counts, 0), {}),
        )
    )
    params = EM(gaussian_mixture, seed=0).initialise(weighted)
    found = []
    for plan in (weighted, repeated):
        em = EMMap.of(plan)
        assert em.missing is not None
        hidden = em.missing(em.coordinates, em.coordinates.flatten(params))
        assert hidden is not None
        found.append(hidden)
    one, other = found
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["full", "tied", "counts", "classes"])
def test_newton_climbs_to_the_top_that_em_reaches(name: str) -> None:
    _, em, params = read(name)
    current = em.e_step(params)
    for _ in range(20):
        current = em.e_step(em.m_step(current))
    plain, quick = current, em.replayed()
    for _ in range(3000):
        plain = quick.e_step(quick.m_step(plain))
    scheme = Newton()
    state, objectives = scheme.init(current), [current.objective]
    for _ in range(30):
        state, _ = scheme.step(em, state)
        objectives.append(state.current.objective)
    slack = 1e-12 * abs(objectives[0])
    assert all(after >= before - slack for before, after in itertools.pairwise(objectives))
    assert objectives[-1] >= plain.objective - 1e-9 * abs(plain.objective)
    assert state.current.objective == pytest.approx(plain.objective, rel=1e-8)


def test_where_the_objective_is_curved_upwards_newton_climbs_all_the_same() -> None:
    """Half-way between two tops, where a step of Newton's own would lead down to the saddle."""
    x = torch.tensor([-3.0, -2.8, -3.1, 3.0, 2.9, 3.2], dtype=torch.float64).unsqueeze(-1)
    em_ = EM(gaussian_mixture, seed=0)
    plan = em_.plan(x, components=2)
    em = EMMap.of(plan)
    params = em_.initialise(plan)
    params = {**params, "locs": torch.tensor([[-0.3], [0.3]], dtype=torch.float64)}
    params["precisions"] = torch.full_like(params["precisions"], 0.2)
    current = em.e_step(params)
    assert em.missing is not None
    found = Information.with_missing(em.coordinates, current, em.missing)
    assert found is not None
    assert float(torch.linalg.eigvalsh(found.observed)[0]) < 0.0
    state = Newton().init(current)
    for _ in range(20):
        state, _ = Newton().step(em, state)
    top = em_.fit(x, components=2).log_posterior
    assert state.current.objective == pytest.approx(top, rel=1e-9)


def test_a_long_way_takes_a_fraction_of_the_passes_and_has_settled() -> None:
    x = overlapping(2000, 2, 3)
    plain, quick = (
        EM(gaussian_mixture, seed=0, accelerate=how, max_iter=20_000).fit(x, components=3)
        for how in ("squarem", "auto")
    )
    assert quick.log_posterior >= plain.log_posterior - 1e-8 * abs(plain.log_posterior)
    assert quick.evaluations < 0.3 * plain.evaluations
    assert bool((quick.history.diff() >= 0).all())


def test_a_certificate_says_the_least_curvature_that_there_is() -> None:
    x = overlapping(500, 2, 3)
    em = EM(gaussian_mixture, seed=0)
    fit = em.fit(x, components=3)
    plan = em.plan(x, components=3)
    steps = EMMap.of(plan)
    statistics = steps.e_step(fit.params)
    assert steps.missing is not None
    found = Information.with_missing(steps.coordinates, statistics, steps.missing)
    assert found is not None
    # One coordinate of the weights' log-ratios, and what lies above diagonals, are superfluous.
    kept = steps.coordinates.independent(found.point).nonzero()[:, 0]
    observed, complete = (m[kept][:, kept].numpy() for m in (found.observed, found.complete))
    least = scipy.linalg.eigh(observed, complete, eigvals_only=True)[0]
    assert fit.certificate is not None
    assert fit.certificate.curvature == pytest.approx(float(least), rel=1e-6)


def test_what_has_no_closed_form_does_without() -> None:
    x = overlapping(50)
    chain = EM(hidden_markov_gaussian, seed=0).plan(x, states=2)
    assert MissingInformation.of(chain) is None
    wide = EM(gaussian_mixture, seed=0).plan(overlapping(200, 12, 2), components=3)
    assert MissingInformation.of(wide) is None
    plan, _, _ = read("full")
    assert EMMap.of(plan, classification=True).missing is None


def test_where_digits_are_lost_the_missing_information_is_not_known() -> None:
    """Two clusters a hundredth of a millionth of their distance from zero wide."""
    x = torch.cat([1e7 + 1e-1 * overlapping(40), -1e7 + 1e-1 * overlapping(40)])
    em = EM(gaussian_mixture, seed=0)
    fit = em.fit(x, components=2)
    plan = em.plan(x, components=2)
    steps = EMMap.of(plan)
    assert steps.missing is not None
    assert steps.missing(steps.coordinates, steps.coordinates.flatten(fit.params)) is None
    assert fit.converged


def test_a_sample_of_all_rows_is_all_rows() -> None:
    plan, _, params = read("weighted")
    kernel = LogEvidence.of(plan).kernel
    assert isinstance(kernel, MixtureKernel)
    natural = natural_parameters(plan, values_of(plan, params))
    affine = kernel.affine(natural)
    every = kernel.sampled(len(kernel.rows))
    assert torch.allclose(every.spread(affine), kernel.spread(affine), rtol=1e-10, atol=1e-10)


def test_what_a_sample_hides_is_about_what_all_rows_hide() -> None:
    em = EM(gaussian_mixture, seed=0)
    plan = em.plan(overlapping(20_000, 2, 3), components=3)
    steps, params = EMMap.of(plan), em.initialise(plan)
    kernel = LogEvidence.of(plan).kernel
    assert isinstance(kernel, MixtureKernel)
    sketch = MissingInformation(plan, kernel.sampled(5_000))
    point = steps.coordinates.flatten(params)
    assert steps.missing is not None
    whole, some = steps.missing(steps.coordinates, point), sketch(steps.coordinates, point)
    assert whole is not None
    assert some is not None
    assert not torch.equal(whole, some)
    assert float((whole - some).norm()) < 0.1 * float(whole.norm())


def test_a_sketch_shortens_the_way_to_the_same_top(monkeypatch: pytest.MonkeyPatch) -> None:
    x = overlapping(4_000, 4, 4)
    monkeypatch.setattr(missing_information, "PRODUCTS", 0)  # too many rows for Newton's steps
    em = EM(gaussian_mixture, seed=0)
    usual = em.fit(x, components=4)
    assert EMMap.of(em.plan(x, components=4)).sketch is None
    monkeypatch.setattr(missing_information, "FEWEST", 1_000)
    monkeypatch.setattr(missing_information, "DEAR", 0)
    monkeypatch.setattr(missing_information, "PASSES", math.inf)
    em = EM(gaussian_mixture, seed=0)
    quick = em.fit(x, components=4)
    assert EMMap.of(em.plan(x, components=4)).sketch is not None
    assert quick.log_posterior == pytest.approx(usual.log_posterior, rel=1e-9)
    assert quick.evaluations < 0.7 * usual.evaluations
    assert bool((quick.history.diff() >= 0).all())
