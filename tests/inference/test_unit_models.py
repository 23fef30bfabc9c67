"""Every model of the library with latents of units: its fit, its optimum, what follows from it."""

from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor

from ember.inference import EM, SVI
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.objective import score
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.building import build_plan
from tests.further import further
from tests.inference.catalogue import OF_UNITS, Case, case_id, model_of

each_case = pytest.mark.parametrize("case", OF_UNITS, ids=case_id)


def latents_of(case: Case) -> list[str]:
    return list(EM(model_of(case)).plan(case[1], **case[2]).structure.units)


@each_case
def test_fit(case: Case) -> None:
    _, y, options = case
    fit = EM(model_of(case), seed=0).fit(y, **options)
    assert fit.converged, fit.stop_reason
    assert bool((fit.history.diff() >= -1e-9 * abs(fit.log_posterior)).all())
    coordinates = Coordinates(fit.plan.structure.parameters)
    with sheltered(0):
        slope = score(LogEvidence.of(fit.plan).statistics(fit.params), coordinates)
    assert float(slope.abs().max()) < 1e-3
    plain = EM(model_of(case), seed=0, accelerate=None, tol=1e-10).fit(y, **options)
    assert plain.log_posterior == pytest.approx(fit.log_posterior, abs=1e-4)


@each_case
def test_reference_path_agrees(case: Case) -> None:
    """Asked of the model at each node, without maps and without a record."""
    _, y, options = case
    with sheltered(0):
        arguments = prepare((y,), options)
        plan, reference = (
            build_plan(model_of(case), arguments, probing=probing) for probing in (True, False)
        )
        assert reference.units[0].playback.tape is None
        params = {n: p.start for n, p in plan.structure.parameters.items()}
        one, two = (LogEvidence.of(each).statistics(params) for each in (plan, reference))
        assert one.log_likelihood == pytest.approx(two.log_likelihood, rel=1e-10)
        assert one.log_prior == pytest.approx(two.log_prior, rel=1e-10)
        coordinates = Coordinates(plan.structure.parameters)
        slopes = [score(each, coordinates) for each in (one, two)]
        torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-6)


@each_case
def test_answers(case: Case) -> None:
    _, y, options = case
    fit = EM(model_of(case), seed=0).fit(y, **options)
    for name in latents_of(case):
        found = fit.posterior(name)
        assert found.mean.shape == found.stddev.shape
        assert bool((found.stddev > 0).all())
        assert fit.latent_samples(3, seed=0)[name].shape == (3, *found.mean.shape)
    values: Any = fit.predict()
    first = values if isinstance(values, Tensor) else next(iter(values.values()))
    assert torch.equal(first, fit.posterior(latents_of(case)[0]).mean)
    assert {"y", *latents_of(case)} <= fit.sample(2, seed=0).keys()
    assert bool(fit.log_prob().isfinite().all())
    assert "nodes" in str(fit)
    figure = fit.plot()
    figure.draw_without_rendering()
    assert len(figure.axes) >= len(latents_of(case))
    plt.close("all")


@pytest.mark.parametrize("case", [OF_UNITS[0], *further(*OF_UNITS[1:])], ids=case_id)
def test_svi_with_latents_integrated_reaches_the_same_optimum(case: Case) -> None:
    _, y, options = case
    fit = EM(model_of(case), seed=0).fit(y, **options)
    how = dict.fromkeys(latents_of(case), "quadrature")
    coordinates = Coordinates(fit.plan.structure.parameters)
    free = coordinates.flatten(fit.params)
    away = coordinates.unflatten(free + 0.1 * torch.sin(torch.arange(len(free)) + 1.0))
    svi = SVI(model_of(case), guide="delta", steps=300, seed=0, integrate=how, init=away)
    other = svi.fit(y, **options)
    assert float(other.history[0]) < fit.log_posterior - 1e-3
    assert other.log_posterior <= fit.log_posterior + 1e-5
    assert other.log_posterior == pytest.approx(fit.log_posterior, abs=2e-3)
