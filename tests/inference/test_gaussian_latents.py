"""Gaussian latents are integrated exactly: EM against the dense oracle on models of every shape."""

import dataclasses
import functools
import itertools
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ember.inference import EM, Fit
from tests.inference import brute_force
from tests.inference.catalogue import INTEGRATED, case_id, model_of
from tests.inference.dense_gaussian import Dense, dense, free_objective
from tests.inference.gaussian_models import (
    CASES,
    GAUSSIAN,
    GROUP,
    ITEM,
    REFUSED,
    SHOWN,
    X_FACTORS,
    Y_CROSSED,
    Case,
    Y,
    crossed,
    factor_analysis,
    masked,
    random_intercept,
)

TOLERANCE = 1e-9
each_case = pytest.mark.parametrize("name", CASES)
each_seed = pytest.mark.parametrize("seed", [1, 2])
# The oracle's own search takes a minute there; the gradient at EM's optimum is tested instead.
MIXTURES = ("factor mixture", "intercept mixture")


def step_of(latent: str) -> tuple[str, int | None]:
    """The name of a latent without the number of its step, and that number."""
    stem, _, number = latent.rpartition("_")
    return (stem, int(number)) if stem and number.isdigit() else (latent, None)


def series(case: Case) -> dict[str, list[str]]:
    """The latents by the name under which their posterior is asked for."""
    found: dict[str, list[str]] = {}
    for latent in case.latents:
        found.setdefault(step_of(latent)[0], []).append(latent)
    return found


def em_of(case: Case, **options: Any) -> EM:
    return EM(case.model, case.objective, **options)


def fit_at(case: Case, params: dict[str, Tensor]) -> Fit:
    """A fit whose estimates are moved to given parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single iteration does not converge
        em = EM(case.model, case.objective, init=params, max_iter=1, accelerate=None)
        fit = em.fit(*case.args, **case.kwargs)
    return dataclasses.replace(fit, params=params)


def fitted(case: Case, **options: Any) -> Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reaching max_iter is told by other tests
        return em_of(case, tol=1e-12, max_iter=3000, **options).fit(*case.args, **case.kwargs)


def close(found: Any, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Agreement relative to the largest entry: small ones are differences of large ones."""
    found = torch.as_tensor(found, dtype=torch.float64)
    assert found.shape == expected.shape
    scale = float(expected.abs().max()) + 1e-300
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


# -- the E-step ------------------------------------------------------------------------------------


@each_seed
@each_case
def test_log_likelihood_at_random_parameters(name: str, seed: int) -> None:
    case = CASES[name]
    params = case.params(seed)
    truth = float(case.dense(params).log_evidence)
    stats = em_of(case).e_step(params, *case.args, **case.kwargs)
    assert stats.log_likelihood == pytest.approx(truth, rel=TOLERANCE)
    if case.objective == "map":
        prior = brute_force.log_prior(case.model, params, *case.args, **case.kwargs)
        assert stats.objective == pytest.approx(truth + float(prior), rel=TOLERANCE)


@each_seed
@each_case
def test_log_likelihood_without_marks(name: str, seed: int) -> None:
    """The rule finds the latents that the marks name, wherever it must."""
    case = CASES[name]
    params = case.params(seed)
    wishes = {} if name not in NOT_BY_RULE else dict.fromkeys(case.latents, "gaussian")
    em = EM(case.unmarked().model, case.objective, integrate=wishes)
    stats = em.e_step(params, *case.args, **case.kwargs)
    truth = float(case.dense(params, check=False).log_evidence)
    assert stats.log_likelihood == pytest.approx(truth, rel=TOLERANCE)


NOT_BY_RULE = ("shared scale",)  # the scale of its prior enters the data: a parameter by the rule


@each_seed
@each_case
def test_posterior_moments(name: str, seed: int) -> None:
    case = CASES[name]
    params = case.params(seed)
    truth, fit = case.dense(params), fit_at(case, params)
    for stem, latents in series(case).items():
        posterior = fit.posterior(stem)
        along = len(latents) > 1
        for moment, expected in moments(truth, latents, along).items():
            close(getattr(posterior, moment), expected)


def moments(truth: Dense, latents: list[str], along: bool) -> dict[str, Tensor]:
    """What the posterior of one latent, or of the steps of a chain, should say."""
    found = {
        "mean": [truth.mean(each) for each in latents],
        "variance": [truth.variance(each) for each in latents],
    }
    if truth.shapes[latents[0]][1]:  # vectors have covariances too
        found["covariance"] = [truth.covariance(each) for each in latents]
    dim = len(truth.shapes[latents[0]][0])  # steps come after plates
    return {moment: torch.stack(each, dim) if along else each[0] for moment, each in found.items()}


@each_seed
@pytest.mark.parametrize("name", ["local level", "local level with gaps", "autoregression"])
def test_covariances_of_neighbouring_steps(name: str, seed: int) -> None:
    case = CASES[name]
    params = case.params(seed)
    truth, fit = case.dense(params), fit_at(case, params)
    ((stem, latents),) = series(case).items()
    expected = [
        truth.cross_covariance(one, other).reshape(()) for one, other in itertools.pairwise(latents)
    ]
    close(torch.as_tensor(fit.posterior_pairs(stem)).reshape(-1), torch.stack(expected))


@pytest.mark.parametrize("name", MIXTURES)
def test_posterior_of_discrete_latents(name: str) -> None:
    case = CASES[name]
    params = case.params(1)
    truth, fit = case.dense(params), fit_at(case, params)
    (latent,) = truth.discrete
    expected = truth.marginal(latent)
    found = fit.posterior(latent).probs.reshape(expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@functools.cache
def oracles_best(name: str) -> tuple[dict[str, Tensor], float]:
    """The oracle's maximum from the start that the model gives."""
    return CASES[name].maximum(CASES[name].start())


# -- the M-step and the fit ------------------------------------------------------------------------


@each_case
def test_a_step_raises_the_oracles_objective(name: str) -> None:
    case = CASES[name]
    params = case.params(2)
    em = em_of(case)
    free, value = free_objective(
        case.model, case.latents, params, *case.args, objective=case.objective, **case.kwargs
    )
    before = float(value(free.flatten(params)))
    after = em.m_step(em.e_step(params, *case.args, **case.kwargs))
    assert after.keys() == params.keys()
    assert float(value(free.flatten(after))) > before


@pytest.mark.parametrize("name", [each for each in CASES if each not in MIXTURES])
def test_a_maximum_stays_where_it_is(name: str) -> None:
    """The oracle's own maximum is a fixed point of the plain EM step."""
    case = CASES[name]
    best, _ = oracles_best(name)
    em = em_of(case)
    after = em.m_step(em.e_step(best, *case.args, **case.kwargs))
    for site, value in after.items():
        scale = float(best[site].abs().max())
        torch.testing.assert_close(value, best[site], rtol=1e-4, atol=1e-4 * scale)


@each_case
def test_the_optimum_is_the_oracles(name: str) -> None:
    case = CASES[name]
    fit = fitted(case, init=case.start())
    reached = fit.log_posterior if case.objective == "map" else fit.log_likelihood
    if name in MIXTURES:
        best = float(slope_at(case, fit.params)[1])
    else:
        params, best = oracles_best(name)
        if case.identified:
            for site, value in fit.params.items():
                scale = float(params[site].abs().max())
                torch.testing.assert_close(value, params[site], rtol=1e-3, atol=1e-3 * scale)
    assert reached == pytest.approx(best, abs=1e-6)


@each_case
def test_the_default_start_leads_to_an_optimum(name: str) -> None:
    case = CASES[name]
    fit = fitted(case, seed=0)
    assert fit.converged or not case.identified, fit.stop_reason
    slope, value = slope_at(case, fit.params)
    assert float(slope.abs().max()) < 1e-3
    reached = fit.log_posterior if case.objective == "map" else fit.log_likelihood
    assert reached == pytest.approx(float(value), rel=TOLERANCE)


def slope_at(case: Case, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient of the oracle's objective in free reals, and its value."""
    free, value = free_objective(
        case.model, case.latents, params, *case.args, objective=case.objective, **case.kwargs
    )
    vector = free.flatten(params).detach().requires_grad_()
    total = value(vector)
    (slope,) = torch.autograd.grad(total, vector)
    return slope, total.detach()


@pytest.mark.parametrize("accelerate", [None, "auto", "squarem", "lbfgs"])
@each_case
def test_the_objective_never_falls(name: str, accelerate: str | None) -> None:
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        em = em_of(case, init=case.params(3), accelerate=accelerate, max_iter=60)
        fit = em.fit(*case.args, **case.kwargs)
    history = fit.history
    assert bool((history.diff() >= -TOLERANCE * (1.0 + history[1:].abs())).all())
    assert "fell" not in fit.stop_reason


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
@pytest.mark.parametrize("name", ["prior mean", "random intercept", "nested plates"])
def test_data_far_from_the_origin(name: str, shift: float) -> None:
    case = CASES[name]
    params = case.params(1)
    moved = {**params, "mu": params["mu"] + shift}
    here = em_of(case).e_step(params, *case.args)
    there = em_of(case).e_step(moved, case.args[0] + shift, *case.args[1:])
    assert there.log_likelihood == pytest.approx(here.log_likelihood, rel=1e-8)
    start = em_of(case).m_step(here)
    after = em_of(case).m_step(there)
    after["mu"] = after["mu"] - shift
    for site, value in after.items():
        close(value, start[site], 1e-7)


# -- the same density in other words ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("random intercept", "non-centred"),
        ("kinship", "kinship, non-centred"),
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


# -- roles and refusals ----------------------------------------------------------------------------


@each_case
def test_explain_says_how_they_are_integrated(name: str) -> None:
    case = CASES[name]
    table = em_of(case).explain(*case.args, **case.kwargs).set_index("site")
    for latent in case.latents:
        assert table.loc[line_of(latent, list(table.index)), "role"] == "latent"


def line_of(latent: str, lines: list[str]) -> str:
    """The line of a latent, or of all steps of a chain, such as "level_0 ... level_11"."""
    stem, step = step_of(latent)
    if latent in lines or step is None:
        return latent
    for line in lines:
        first, _, last = line.partition(" ... ")
        (one, low), (other, high) = step_of(first), step_of(last)
        if one == other == stem and low is not None and high is not None and low <= step <= high:
            return line
    raise AssertionError(f"{latent} has no line among {lines}")


def test_a_wish_makes_a_latent_a_parameter() -> None:
    """Without the integral the effects are estimated, one by one, under their prior."""
    case = CASES["only slopes"]
    em = EM(case.model, "map", integrate={"b": None})
    params = {**case.params(1), "b": torch.zeros(6).double()}
    stats = em.e_step(params, *case.args)
    trace = brute_force.run(case.model, params, {}, *case.args)
    assert stats.objective == pytest.approx(float(trace.log_prob_sum()), rel=TOLERANCE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_gaussian_is_refused_by_name(name: str) -> None:
    refused = REFUSED[name]
    with pytest.raises((ValueError, NotImplementedError)) as caught:
        EM(refused.model, "mle").fit(*refused.args)
    message = str(caught.value)
    assert "this version integrates discrete latents only" not in message
    for site in refused.names:
        assert f"'{site}'" in message
    assert "\n" not in message.strip()


# -- the models of the library ---------------------------------------------------------------------


def latents_of(case: tuple[str, Any, dict[str, Any]]) -> tuple[str, ...]:
    """The latents that a model of the library marks."""
    sites: Any = poutine.trace(model_of(case)).get_trace(case[1], **case[2]).nodes
    return tuple(
        name
        for name, site in sites.items()
        if site["type"] == "sample" and site["infer"].get("integrate") == "gaussian"
    )


@pytest.mark.parametrize("case", INTEGRATED, ids=case_id)
def test_the_librarys_models_are_closed_form_throughout(
    case: tuple[str, Any, dict[str, Any]],
) -> None:
    table = EM(model_of(case)).explain(case[1], **case[2])
    parameters = table[table["role"] == "parameter"]
    assert set(parameters["M-step"]) == {"closed form"}
    lines = list(table["site"])
    roles = table.set_index("site")["role"]
    assert {roles[line_of(latent, lines)] for latent in latents_of(case)} <= {"latent"}


@pytest.mark.parametrize("case", INTEGRATED, ids=case_id)
def test_the_librarys_models_reach_an_optimum(case: tuple[str, Any, dict[str, Any]]) -> None:
    model, latents = model_of(case), latents_of(case)
    fit = EM(model, seed=0, tol=1e-12, max_iter=3000).fit(case[1], **case[2])
    assert fit.converged, fit.stop_reason
    if case[0] == "mixture_of_factor_analysers":
        return  # too many joint values for the oracle, which has such a model on fewer rows
    free, value = free_objective(model, latents, fit.params, case[1], objective="map", **case[2])
    vector = free.flatten(fit.params).detach().requires_grad_()
    total = value(vector)
    (slope,) = torch.autograd.grad(total, vector)
    assert fit.log_posterior == pytest.approx(float(total.detach()), rel=TOLERANCE)
    assert float(slope.abs().max()) < 1e-3
