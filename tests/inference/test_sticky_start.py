"""Starts of chains from levels of the data and persistent moves."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.initialisation.clustering import levels
from ember.inference.initialisation.starting_params import STAY, start_kinds, starting_params
from ember.inference.iteration.restarts import starting_points
from ember.inference.plan.plan import Plan
from ember.models import gaussian_mixture, hidden_markov_gaussian, hidden_markov_poisson
from tests.further import further

PUBLISHED = {2: -342.3183, 3: -329.4603, 4: -327.8316}  # Zucchini, MacDonald & Langrock (2016)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_levels_hold_equal_shares_of_the_rows_in_order() -> None:
    rows = normal(90, 1)
    labels = levels(rows, 3)
    assert labels.bincount().tolist() == [30, 30, 30]
    in_order = labels[rows[:, 0].argsort()]
    assert in_order.tolist() in ([0] * 30 + [1] * 30 + [2] * 30, [2] * 30 + [1] * 30 + [0] * 30)


def test_levels_follow_the_first_principal_component() -> None:
    along = torch.linspace(-5.0, 5.0, 40, dtype=torch.float64)
    rows = along.unsqueeze(1) * torch.tensor([0.6, -0.8]).double() + 0.01 * normal(40, 2)
    labels = levels(rows, 2)
    assert torch.equal(labels, (along > 0).long()) or torch.equal(labels, (along < 0).long())


def test_equal_rows_are_spread_over_the_levels() -> None:
    labels = levels(torch.zeros(40, 1, dtype=torch.float64), 4)
    assert labels.bincount().tolist() == [10] * 4


def test_varied_levels_differ_and_keep_the_order() -> None:
    rows = torch.linspace(-1.0, 1.0, 100, dtype=torch.float64).unsqueeze(1)
    found = {tuple(levels(rows, 3, varied=True).bincount(minlength=3).tolist()) for _ in range(5)}
    assert len(found) == 5
    steps = levels(rows, 3, varied=True).diff()
    assert bool((steps >= 0).all()) or bool((steps <= 0).all())


@pytest.mark.parametrize("lengths", [None, [40, 25, 9]])
def test_moves_start_persistent_whatever_the_data(lengths: list[int] | None) -> None:
    em = EM(hidden_markov_gaussian, "mle", init="sticky", seed=0)
    start = em.initialise(normal(3, 40, 1), states=3, lengths=lengths)
    expected = STAY * torch.eye(3, dtype=torch.float64) + (1.0 - STAY) / 3
    torch.testing.assert_close(start["transition"], expected, rtol=1e-12, atol=1e-12)


def test_without_a_chain_it_is_k_means() -> None:
    one, two = (
        EM(gaussian_mixture, init=kind, seed=0).initialise(normal(40, 2), components=2)
        for kind in ("kmeans", "sticky")
    )
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


def test_chains_try_the_kinds_made_for_them_first() -> None:
    assert start_kinds("kmeans", 4, chains=True) == ["kmeans", "windows", "sticky", "hierarchical"]
    assert start_kinds("sticky", 3, chains=True) == ["sticky", "windows", "points"]
    assert start_kinds("windows", 3, chains=True) == ["windows", "sticky", "points"]
    assert not {"sticky", "windows"} & set(start_kinds("kmeans", 12))


def test_the_first_start_of_a_kind_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, bool, Tensor]] = []

    def recorded(plan: Plan, init: str, varied: bool) -> dict[str, Tensor]:
        params = starting_params(plan, init, varied)
        made.append((init, varied, params["transition"]))
        return params

    monkeypatch.setattr(starting_points, "starting_params", recorded)
    EM(hidden_markov_poisson, seed=0, restarts=9).fit(normal(60).exp().round(), states=2)
    varied = {kind: [v for name, v, _ in made if name == kind] for kind, _, _ in made}
    assert varied["sticky"] == varied["kmeans"] == [False, True]
    first, second = (moves for name, _, moves in made if name == "sticky")
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("states", list(PUBLISHED))
def test_earthquakes(reference_data: Any, states: int) -> None:
    """With four states, sixty starts by clusters, windows and at random ended 0.64 below."""
    counts = torch.tensor(reference_data("earthquakes")["count"].tolist())
    fit = EM(hidden_markov_poisson, "mle", init="sticky", seed=0).fit(
        counts, states=states, stationary=True
    )
    assert fit.log_likelihood == pytest.approx(PUBLISHED[states], abs=1e-4)


@pytest.mark.parametrize("seed", [0, *further(1)])
def test_earthquakes_by_several_starts(reference_data: Any, seed: int) -> None:
    counts = torch.tensor(reference_data("earthquakes")["count"].tolist())
    em = EM(hidden_markov_poisson, "mle", restarts=3, seed=seed)
    fit = em.fit(counts, states=4, stationary=True)
    assert fit.log_likelihood == pytest.approx(PUBLISHED[4], abs=1e-4)
