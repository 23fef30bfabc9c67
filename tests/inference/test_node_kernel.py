"""The sweep over rows of a latent on nodes is the general elimination, to rounding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.kernels import nodes, sweep
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.maximisation.separable import blocks_of
from ember.inference.numerics import newton
from ember.inference.plan.potentials import natural_parameters, values_of
from ember.inference.queries.on_nodes import node_gaps
from ember.models import item_response

N, J = 200, 5
OPTIONS: dict[str, dict[str, Any]] = {
    "one group": {},
    "groups": {"groups": torch.arange(N) % 3},
    "weights": {"frequency": 0.5 + torch.arange(N) % 4},
    "vectors": {"dimensions": 2},
    "vectors in groups": {"dimensions": 2, "groups": torch.arange(N) % 2},
    "levels": {"model": "graded", "levels": 3},
    "guessing": {"model": "3pl"},
}


@pytest.fixture
def answers() -> Tensor:
    u = torch.randn(N, 1, dtype=torch.float64)
    return torch.bernoulli(torch.sigmoid(u + torch.linspace(-1, 1, J)))


def evidence_of(y: Tensor, options: dict[str, Any]) -> tuple[LogEvidence, dict[str, Tensor]]:
    em = EM(item_response, seed=0)
    plan = em.plan(y, **options)
    evidence = LogEvidence(plan)
    assert evidence.on_nodes is not None
    return evidence, em.initialise(plan)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("case", OPTIONS)
def test_it_is_the_general_elimination(answers: Tensor, case: str, gaps: bool) -> None:
    y = answers.clone()
    if gaps:
        y[torch.rand(N, J) < 0.1] = torch.nan
    evidence, params = evidence_of(y, OPTIONS[case])
    with sheltered(0):
        swept = evidence.statistics(params)
        kernel, evidence.on_nodes = evidence.on_nodes, None
        general = evidence.statistics(params)
    assert kernel is not None
    assert swept.log_likelihood == pytest.approx(general.log_likelihood, rel=1e-13)
    for key, (_, sums) in swept.sums.items():
        assert torch.allclose(sums, general.sums[key][1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", ["groups", "weights", "vectors"])
def test_parts_of_the_rows_add_up(
    answers: Tensor, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence, params = evidence_of(answers, OPTIONS[case])
    assert evidence.on_nodes is not None
    kernel, plan = evidence.on_nodes, evidence.plan
    blocks, by_node = kernel._laid_out(natural_parameters(plan, values_of(plan, params)))
    left, rows = torch.cat(blocks, 1), kernel.statistics.shape[1]
    whole = kernel._part(left, by_node, (0, rows))
    parts = [kernel._part(left, by_node, bounds) for bounds in ((0, 7), (7, rows))]
    for found, one, other in zip(whole, *parts, strict=True):
        torch.testing.assert_close(one + other, found, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(nodes, "ALONE", 1)
    monkeypatch.setattr(sweep, "ALIGNED", 8)
    torch.set_num_threads(3)
    again = kernel._sweep(left, by_node)
    for found, wanted in zip(again, whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_gaps_row_by_row(answers: Tensor) -> None:
    evidence, params = evidence_of(answers[:, :3], {"groups": torch.arange(N) % 2})
    with sheltered(0):
        swept = node_gaps(evidence.plan, params)
        other = LogEvidence.of(evidence.plan)
        other.on_nodes = None
        assert node_gaps(evidence.plan, params) == pytest.approx(swept, rel=1e-6, abs=1e-13)


def test_answers_that_add_up_take_half_the_work(answers: Tensor) -> None:
    whole, _ = evidence_of(answers[:150], {"frequency": torch.rand(150)})
    gappy = answers[:150].clone()
    gappy[0, 0] = torch.nan
    some, _ = evidence_of(gappy, {"frequency": torch.rand(150)})
    assert whole.on_nodes is not None
    assert some.on_nodes is not None
    assert len(whole.on_nodes.statistics) == J
    assert len(some.on_nodes.statistics) == 2 * J


def test_equal_rows_are_one(answers: Tensor) -> None:
    evidence, _ = evidence_of(answers, {})
    assert evidence.on_nodes is not None
    assert evidence.on_nodes.statistics.shape[1] == len(answers.unique(dim=0))
    assert evidence.on_nodes.weights is not None
    assert float(evidence.on_nodes.weights.sum()) == N


@pytest.mark.parametrize(
    ("case", "width", "count"),
    [("one group", 2, J), ("guessing", 3, J), ("levels", 3, J), ("vectors", 3, J)],
)
def test_each_item_is_a_block(answers: Tensor, case: str, width: int, count: int) -> None:
    evidence, params = evidence_of(answers, OPTIONS[case])
    m_step = MStep(evidence.plan)
    names = [update.name for update in m_step.updates if update.how == "numerical"]
    with sheltered(0):
        blocks = blocks_of(m_step.plan, names, evidence.statistics(params))
    assert blocks is not None
    assert blocks.shape == (count, width)
    entries = blocks[blocks >= 0]
    assert len(entries.unique()) == len(entries) == sum(params[name].numel() for name in names)


def test_one_discrimination_for_all_items_ties_them(answers: Tensor) -> None:
    evidence, params = evidence_of(answers, {"model": "1pl"})
    m_step = MStep(evidence.plan)
    with sheltered(0):
        statistics = evidence.statistics(params)
        names = ["discriminations", "intercepts"]
        assert blocks_of(m_step.plan, names, statistics) is None
        moved = m_step(statistics)
        assert expected_log_joint(statistics, moved) > expected_log_joint(statistics, params)


@pytest.mark.parametrize("case", OPTIONS)
def test_the_m_step_by_blocks_is_that_of_l_bfgs(
    answers: Tensor, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence, params = evidence_of(answers, OPTIONS[case])
    with sheltered(0):
        statistics = evidence.statistics(params)
        by_blocks = MStep(evidence.plan)(statistics)
        monkeypatch.setattr(newton, "minimise_blocks", lambda *_: None)
        monkeypatch.setattr(newton, "MOST_PARAMETERS", 0)
        by_search = MStep(evidence.plan)(statistics)
        reached = expected_log_joint(statistics, by_blocks)
        assert float(reached) >= float(expected_log_joint(statistics, by_search)) - 1e-9
    for name, value in by_blocks.items():
        assert torch.allclose(value, by_search[name], atol=2e-4)


def test_blocks_of_a_function_with_an_edge_are_left_to_others() -> None:
    blocks = torch.tensor([[0, 1], [2, -1]])
    smooth = newton.minimise_blocks(
        lambda x: ((x - 1.0) ** 4).sum() + (x[0] * x[1] - 1.0) ** 2, torch.zeros(3), blocks
    )
    assert smooth is not None
    assert torch.allclose(smooth, torch.ones(3), atol=1e-2)
    edge = newton.minimise_blocks(
        lambda x: (x - 0.3).abs().sum() + 0.1 * x.square().sum(), torch.ones(3), blocks
    )
    assert edge is None
