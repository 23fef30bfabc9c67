"""Sites without sufficient statistics, in pieces: the fit of the whole, by way of second order."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors import predictors
from ember.inference.maximisation.information import CompleteInformation
from ember.inference.maximisation.objective import score
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.streaming import parts
from ember.inference.streaming.gathering import gathered_parts
from ember.inference.streaming.parts import PartsAt, in_template
from ember.inference.streaming.ranks import Ranks
from ember.inference.streaming.steps import Steps
from ember.models import regression_mixture
from tests.inference.executors import Here
from tests.inference.opaque_cases import CASES, ROWS, Case


def edged(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(2.0 * torch.ones(2)))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Laplace(loc[z], 1.0), obs=x)


every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_equals_the_fit_of_the_whole(case: Case) -> None:
    fit = EM(case.model, seed=0).fit_batches(case.pieces(70), **case.options)
    whole = case.whole(EM(case.model, init=dict(fit.params), seed=0))
    assert fit.converged
    assert fit.certificate is not None
    assert fit.log_posterior == pytest.approx(whole.log_posterior, rel=1e-9)
    assert bool((fit.history.diff() >= 0.0).all())
    for name, value in whole.params.items():
        assert torch.allclose(fit.params[name], value, rtol=1e-4, atol=1e-4), name
    found, expected = fit.vcov(), whole.vcov()
    assert list(found.index) == list(expected.index)
    sizes = expected.to_numpy().diagonal() ** 0.5
    assert abs((found - expected) / sizes / sizes[:, None]).max(axis=None) < 1e-3


@pytest.mark.parametrize("fewest", [0, 10**9], ids=["by lines", "automatic"])
@every_case
def test_slope_and_curvature_are_those_of_all_rows(
    case: Case, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictors, "FEWEST", fewest)
    em = EM(case.model, seed=0)
    plan = em.plan(**case.rows, **case.options)
    params = em.initialise(plan)
    each = [em.plan(**piece, **case.options) for piece in case.pieces(90)]
    whole = LogEvidence.of(plan).statistics(params)
    pieces = [PartsAt([params])(piece)[0] for piece in each]
    prior = float(plan.prior.log_prob(params))
    found = in_template(plan, pieces).statistics(plan, params, prior)
    assert found.second_order is not None
    coordinates = Coordinates(plan.structure.parameters)
    assert torch.allclose(
        score(found, coordinates), score(whole, coordinates), rtol=1e-9, atol=1e-8
    )
    everywhere = torch.ones(len(coordinates), dtype=torch.bool)
    own, expected = (
        CompleteInformation(coordinates, each, everywhere).matrix() for each in (found, whole)
    )
    assert torch.allclose(own, expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))


@pytest.mark.parametrize("accelerate", [None, "auto", "squarem", "lbfgs"])
def test_from_afar_no_step_falls(accelerate: str | None) -> None:
    """Where the curvature misleads, steps are shortened; EM on all rows ends at the same top."""
    case = CASES["poisson"]
    start = {"coefficients": torch.tensor([[0.0, 1.0, -1.0], [3.0, 1.0, 1.0]]).double()}
    em = EM(case.model, init=start, accelerate=accelerate, seed=0)
    fit, whole = em.fit_batches(case.pieces(70), **case.options), case.whole(em)
    assert bool((fit.history.diff() >= 0.0).all())
    assert fit.log_posterior == pytest.approx(whole.log_posterior, rel=1e-7)


def test_a_step_that_falls_is_shortened() -> None:
    """The first Newton step of rates far too small overshoots by orders of magnitude."""
    case = CASES["poisson"]
    em = EM(case.model, seed=0)
    plan = em.plan(**case.rows, **case.options)
    passes = list[float]()

    def e_step(params: Any) -> Any:
        part = in_template(plan, PartsAt([params])(plan))
        prior = float(plan.prior.log_prob(params))
        found = part.statistics(plan, params, prior)
        passes.append(found.objective)
        return found

    low = {"coefficients": torch.tensor([[-4.0, 0.0, 0.0], [-5.0, 0.0, 0.0]]).double()}
    steps, params = Steps(plan, e_step), {**em.initialise(plan), **low}
    before = steps.e_step(params)
    moved = steps.m_step(before)
    assert len(passes) > 2
    assert passes[1] < before.objective < passes[-1]
    count = len(passes)
    assert steps.e_step(moved).objective == passes[-1]
    assert len(passes) == count  # the pass that asked is the E-step
    assert steps.e_step(moved).objective == passes[-1]
    assert len(passes) == count + 1


def test_workers_and_processes_send_what_adds_up() -> None:
    case = CASES["experts"]
    em = EM(case.model, "mle", seed=0)
    alone = em.fit_batches(case.pieces(80), **case.options)
    with Here() as executor:
        fit = em.fit_batches(case.pieces(80), executor=executor, **case.options)
    assert fit.log_posterior == pytest.approx(alone.log_posterior, rel=1e-12)
    plan = em.plan(**case.rows, **case.options)
    params = dict(alone.params)
    own = PartsAt([params])(plan)

    class Twins(Ranks):
        """Two processes with the same rows."""

        def stacked(self, vector: Tensor) -> Tensor:
            return torch.stack([vector, vector])

    (found,) = gathered_parts(Twins(0, 2), [plan], lambda: [in_template(plan, own)], [params])
    assert found.rows == 2 * ROWS
    assert found.second_order is not None
    assert own[0].second_order is not None
    for name in ("gradient", "hessian"):
        assert torch.allclose(
            getattr(found.second_order, name), 2.0 * getattr(own[0].second_order, name)
        )


def test_a_checkpoint_goes_on_to_the_bit(tmp_path: Any) -> None:
    case = CASES["logistic"]
    start = {"coefficients": torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, 0.5]]).double()}
    path = tmp_path / "fit.ckpt"
    em = EM(case.model, init=start, seed=0)
    whole = em.fit_batches(case.pieces(70), **case.options)
    with pytest.warns(RuntimeWarning, match="max_iter"):
        EM(case.model, init=start, max_iter=4, seed=0).fit_batches(
            case.pieces(70), checkpoint=path, checkpoint_every=0.0, **case.options
        )
    again = em.fit_batches(case.pieces(70), resume=path, **case.options)
    assert torch.equal(again.history, whole.history)
    assert all(torch.equal(again.params[name], value) for name, value in whole.params.items())


@pytest.mark.parametrize("method", ["stepwise", "variance-reduced"])
def test_steps_before_a_pass_has_ended(method: str) -> None:
    case = CASES["poisson"]
    whole = case.whole(EM(case.model, seed=0))
    start = {"coefficients": whole.params["coefficients"] + 0.3}
    em = EM(case.model, init=start, seed=0)
    fit = em.fit_online(case.pieces(40), method=method, passes=6, **case.options)
    gained = float(fit.history[-1] - fit.history[0])
    left = whole.log_posterior - fit.log_posterior
    assert gained > 10.0
    assert left < (0.05 if method == "stepwise" else 0.001) * gained


def test_hard_assignment() -> None:
    case = CASES["poisson"]
    start = dict(case.whole(EM(case.model, seed=0)).params)
    em = EM(case.model, init=start, assignment="hard", seed=0)
    fit = em.fit_batches(case.pieces(70), **case.options)
    rest = case.whole(EM(case.model, init=dict(fit.params), assignment="hard", seed=0))
    assert bool((fit.history.diff() >= 0.0).all())
    assert float(rest.history[-1]) == pytest.approx(float(fit.history[-1]), rel=1e-9)


def test_what_has_no_curvature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = CASES["Cauchy"].rows["x"]
    with pytest.raises(ValueError, match=r"site 'x' has .* its density has edges"):
        EM(edged).fit_batches(x.split(60))
    monkeypatch.setattr(parts, "MOST", 5)
    with pytest.raises(ValueError, match=r"site 'y' .* reads 6 free parameters, where at most 5"):
        EM(regression_mixture).fit_batches(CASES["poisson"].pieces(70), **CASES["poisson"].options)
