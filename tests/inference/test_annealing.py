"""Annealed starts: the tempered posterior by its definition, and the escape from a bad start."""

import pandas as pd
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.m_step import MStep
from ember.inference.plan.building import build_plan
from ember.inference.reading.matching.arguments import probe_values
from ember.models import gaussian_mixture, hidden_markov_poisson


@pytest.fixture
def faithful(reference_data: object) -> Tensor:
    frame: pd.DataFrame = reference_data("faithful")  # type: ignore[operator]
    return torch.from_numpy(frame.to_numpy(dtype=float))


def test_tempered_responsibilities(faithful: Tensor) -> None:
    with sheltered(0):
        plan = build_plan(gaussian_mixture, prepare((faithful,), {"components": 3}))
        params = probe_values(plan.structure, 4)
        params["locs"] = faithful[:3].clone()
        fn = torch.distributions.MultivariateNormal(
            params["locs"], precision_matrix=params["precisions"]
        )
        joint = fn.log_prob(faithful[:, None]) + params["weights"].log()
        expected = (0.3 * joint).softmax(1).sum(0)
        key = plan.compiled["assignment"][0]
        counts = LogEvidence.of(plan).statistics(params, 0.3).sums[key][1].sum(0)
        torch.testing.assert_close(counts, expected, rtol=1e-9, atol=0.0)
        exact = LogEvidence.of(plan).statistics(params).sums[key][1].sum(0)
        torch.testing.assert_close(
            LogEvidence.of(plan).statistics(params, 1.0 - 1e-12).sums[key][1].sum(0), exact
        )


@pytest.mark.parametrize("temper", [0.15, 0.6])
def test_a_tempered_step_never_lowers_the_free_energy(faithful: Tensor, temper: float) -> None:
    with sheltered(0):
        plan = build_plan(gaussian_mixture, prepare((faithful,), {"components": 3}))
        params = probe_values(plan.structure, 4)
        params["locs"] = faithful[:3].clone()
        energies = []
        for _ in range(25):
            fn = torch.distributions.MultivariateNormal(
                params["locs"], precision_matrix=params["precisions"]
            )
            joint = fn.log_prob(faithful[:, None]) + params["weights"].log()
            free = (temper * joint).logsumexp(1).sum() / temper
            energies.append(float(free + plan.prior.log_prob(params)))
            statistics = LogEvidence.of(plan).statistics(params, temper)
            assert statistics.objective == pytest.approx(energies[-1], rel=1e-10)
            params = MStep.of(plan)(statistics)
    rises = torch.tensor(energies).diff()
    assert bool((rises >= -1e-9 * abs(energies[-1])).all())
    assert energies[-1] > energies[0] + 1.0


def test_annealing_leaves_a_bad_start(faithful: Tensor) -> None:
    covariance = torch.cov(faithful.T)
    bad = {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": torch.tensor([[4.533, 84.0], [4.767, 78.0]]),
        "precisions": torch.linalg.inv(covariance).expand(2, 2, 2),
    }
    plain = EM(gaussian_mixture, "mle", init=bad).fit(faithful, components=2)
    assert plain.log_likelihood == pytest.approx(-1285.31, abs=0.01)
    schedule = [0.1 * 1.05**i for i in range(48)]
    em = EM(gaussian_mixture, "mle", init=bad, anneal=schedule, seed=3)
    annealed = em.fit(faithful, components=2)
    assert annealed.log_likelihood == pytest.approx(-1130.26396, abs=1e-4)
    assert bool((annealed.history.diff() >= 0).all())
    assert annealed.evaluations >= len(schedule)


def test_annealing_a_chain() -> None:
    x = torch.tensor([1.0, 0, 2, 9, 8, 10, 1, 0, 2, 11])
    fit = EM(hidden_markov_poisson, seed=0, anneal=(0.2, 0.5, 0.8)).fit(x, states=2)
    again = EM(hidden_markov_poisson, seed=0).fit(x, states=2)
    assert fit.converged
    assert fit.log_posterior == pytest.approx(again.log_posterior, abs=1e-6)


@pytest.mark.parametrize("anneal", [(0.0, 0.5), (0.5, 2.0), "slowly", 0.5])
def test_bad_schedules(anneal: object) -> None:
    with pytest.raises(ValueError, match="inverse temperatures"):
        EM(gaussian_mixture, anneal=anneal)  # type: ignore[arg-type]
