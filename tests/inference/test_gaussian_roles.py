"""Which sites are Gaussian latents, what is refused, and the models of the library."""

from typing import Any

import pytest
import torch
from pyro import poutine

from ember.inference import EM
from tests.inference import brute_force
from tests.inference.catalogue import INTEGRATED, case_id, model_of
from tests.inference.dense_gaussian import free_objective
from tests.inference.gaussian_fits import TOLERANCE, em_of, step_of
from tests.inference.gaussian_models import CASES
from tests.inference.gaussian_refusals import REFUSED

each_case = pytest.mark.parametrize("name", CASES)


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
