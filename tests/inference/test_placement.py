"""Where work is done, and in which precision, is decided by the data and nothing else.

Under another default device and dtype than those of the plan, a tensor made without naming either
would lie elsewhere (on "meta", which holds no numbers) and meet the others in an error.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.m_step import MStep
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.queries.on_nodes import node_gaps
from ember.inference.reading.matching.arguments import probe_values
from ember.models import item_response
from tests.inference.examples import EXAMPLES


@contextmanager
def elsewhere() -> Iterator[None]:
    """Other defaults than those under which Ember reads a model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)


def read(name: str) -> tuple[Plan, dict[str, torch.Tensor]]:
    example = EXAMPLES[name]
    with sheltered(0):
        plan = build_plan(example.model, prepare(example.args, example.kwargs))
        return plan, dict(probe_values(plan.structure, 0))


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("maximum", [False, True])
def test_the_e_step_is_where_its_data_are(name: str, maximum: bool) -> None:
    plan, params = read(name)
    evidence = LogEvidence(plan)
    with sheltered(0):
        here = evidence.statistics(params, maximum=maximum)
    if not plan.opaque.factors and plan.prior.opaque is None:  # a model makes tensors as it likes
        with elsewhere():
            there = evidence.statistics(params, maximum=maximum)
        assert there.log_likelihood == here.log_likelihood
        for key, (_, sums) in there.sums.items():
            assert sums.dtype == torch.float64
            assert torch.equal(sums, here.sums[key][1])
    assert math.isfinite(here.log_likelihood)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_m_step_is_where_its_statistics_are(name: str) -> None:
    plan, params = read(name)
    with sheltered(0):
        statistics = LogEvidence(plan).statistics(params)
        m_step = MStep(plan)
        here = m_step(statistics)
    if not plan.opaque.factors and plan.prior.opaque is None:
        with elsewhere():
            there = m_step(statistics)
        for site, value in there.items():
            assert value.dtype == here[site].dtype
            assert torch.equal(value, here[site])


ANSWERS = (torch.arange(80).reshape(20, 4) * 7 % 11 < 5).double()
ON_NODES: dict[str, dict[str, Any]] = {
    "one group": {},
    "groups": {"groups": torch.arange(20) % 2},
    "vectors": {"dimensions": 2},
    "levels": {"model": "graded", "levels": 3},
    "weights": {"frequency": 1.0 + torch.arange(20) % 3, "model": "3pl"},
}


@pytest.mark.parametrize("case", ON_NODES)
def test_nodes_are_where_their_latent_is(case: str) -> None:
    with sheltered(0):
        plan = build_plan(item_response, prepare((ANSWERS,), ON_NODES[case]))
        params = dict(probe_values(plan.structure, 0))
        evidence, m_step = LogEvidence(plan), MStep(plan)
        here = evidence.statistics(params)
        moved = m_step(here)
        rows = evidence.rows(params)
        gaps = node_gaps(plan, params)
    assert evidence.on_nodes is not None
    with elsewhere():
        there = evidence.statistics(params)
        again = MStep(plan)(there)
        assert torch.equal(evidence.rows(params), rows)
        assert node_gaps(plan, params) == gaps
    assert there.log_likelihood == here.log_likelihood
    for key, (_, sums) in there.sums.items():
        assert sums.dtype == torch.float64
        assert torch.equal(sums, here.sums[key][1])
    for site, value in again.items():
        assert value.dtype == moved[site].dtype
        assert torch.equal(value, moved[site])
