"""Chains with moves, first states and data of probability zero: the scaled recursions hold."""

import itertools

import pytest
import torch
from torch import Tensor

from ember.inference.expectation.chains import log_space as chain_log
from ember.inference.expectation.chains import scaled as chain_scaled
from ember.inference.expectation.chains.blocks import Potentials
from ember.inference.expectation.chains.evidence import chain_log_evidence
from tests.inference.chain_checks import fifty_digits, in_blocks, only_log_space

K = 3


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)


def left_right(steps: int, states: int, gap: float, rows: int = 1) -> Potentials:
    """Data from chains that go through their states in order, ``gap`` standard deviations apart."""
    stay = 1.0 - states / steps
    matrix = stay * torch.eye(states) + (1.0 - stay) * torch.diag(torch.ones(states - 1), 1)
    matrix[-1, -1] = 1.0
    path = (torch.rand(steps, rows) > stay).long().cumsum(0).clamp_max(states - 1)
    x = gap * path + torch.randn(steps, rows)
    emission = -0.5 * (x.unsqueeze(-1) - gap * torch.arange(states)).square()
    first = torch.full((rows, states), -torch.inf)
    first[:, 0] = 0.0
    return Potentials(first, matrix.log()[None, None], emission)


def expectations(chains: Potentials) -> list[Tensor]:
    leaves = [chains.initial, chains.transition, chains.emission]
    initial, moves, emission = (leaf.clone().requires_grad_() for leaf in leaves)
    evidence = chain_log_evidence(Potentials(initial, moves, emission, chains.lengths))
    return [evidence.detach(), *torch.autograd.grad(evidence.sum(), (initial, moves, emission))]


def is_scaled(chains: Potentials) -> bool:
    return chain_scaled.scaled_forward_backward(chains) is not None


def with_zeros(tensor: Tensor, share: float) -> Tensor:
    return torch.where(torch.rand_like(tensor) < share, -torch.inf, tensor)


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("times", [1, 4])
def test_random_zeros_equal_every_path(
    times: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks(monkeypatch, blocks)
    steps, tried = 5, 0
    paths = torch.tensor(list(itertools.product(range(K), repeat=steps)))
    for _ in range(60):
        initial = with_zeros(torch.randn(1, K), 0.4)
        moves = with_zeros(torch.randn(times, 1, K, K), 0.4)
        emission = with_zeros(3.0 * torch.randn(steps, 1, K), 0.2)
        each = moves.expand(steps - 1, 1, K, K)[:, 0]
        joint = initial[0, paths[:, 0]] + sum(emission[t, 0, paths[:, t]] for t in range(steps))
        for t in range(steps - 1):
            joint = joint + each[t, paths[:, t], paths[:, t + 1]]
        chains = Potentials(initial, moves, emission)
        if not bool(joint.isfinite().any()):
            assert bool(chain_log_evidence(chains).isneginf().all())
            continue
        tried += 1
        assert is_scaled(chains)
        evidence, first, pairs, marginals = expectations(chains)
        torch.testing.assert_close(evidence[0], joint.logsumexp(0), rtol=1e-13, atol=1e-13)
        weights = joint.softmax(0)
        truth = torch.zeros(steps, K)
        moved = torch.zeros(steps - 1, K, K)
        for path, weight in zip(paths.tolist(), weights, strict=True):
            for t, state in enumerate(path):
                truth[t, state] += weight
            for t, (i, j) in enumerate(itertools.pairwise(path)):
                moved[t, i, j] += weight
        torch.testing.assert_close(marginals[:, 0], truth, rtol=1e-12, atol=1e-14)
        assert torch.equal(marginals[:, 0] == 0, truth == 0)  # what is ruled out is exactly so
        torch.testing.assert_close(first[0], truth[0], rtol=1e-12, atol=1e-14)
        moved = moved.sum(0, keepdim=True) if times == 1 else moved
        torch.testing.assert_close(pairs[:, 0], moved, rtol=1e-12, atol=1e-14)
    assert tried > 10


@pytest.mark.parametrize("gap", [1.0, 30.0])
def test_a_left_right_chain_against_fifty_digits(gap: float) -> None:
    """With the wide gap, states that were left end below 1e-100000, and come back no more."""
    steps, states = 150, 4
    chains = left_right(steps, states, gap)
    assert is_scaled(chains)
    evidence, _, _, marginals = expectations(chains)
    exact, truth = fifty_digits(chains)
    assert float(evidence) == pytest.approx(exact, rel=1e-14)
    torch.testing.assert_close(marginals[:, 0], truth, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(
    ("steps", "rows", "gap"), [(10_000, 1, 1.0), (10_000, 1, 8.0), (500, 60, 3.0)]
)
def test_a_long_left_right_chain_as_in_log_space(
    steps: int, rows: int, gap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = left_right(steps, 5, gap, rows)
    assert is_scaled(chains)
    ours = expectations(chains)
    only_log_space(monkeypatch)
    for one, other in zip(ours, expectations(chains), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_state_may_come_back_in_between(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two states that never mix: the first and last third favour one, the middle the other.

    Going forward the winner is lost in the first third, going backward in the last: where they
    meet both recursions agree on the loser.
    """
    in_blocks(monkeypatch, blocks)
    emission = torch.zeros(120, 1, 2)
    emission[:40, 0, 1], emission[80:, 0, 1] = -50.0, -50.0
    emission[40:80, 0, 0] = -125.0
    chains = Potentials(torch.full((1, 2), 0.5).log(), torch.eye(2).log()[None, None], emission)
    assert not is_scaled(chains)
    evidence, _, _, marginals = expectations(chains)
    assert float(evidence) == pytest.approx(-4000.0 - float(torch.tensor(2.0).log()), rel=1e-14)
    torch.testing.assert_close(marginals[:, 0, 1], torch.ones(120))


def test_no_bound_is_taken_for_a_probability() -> None:
    """Chains that lose states for a while: the scaled result is right, or there is none."""
    kept = 0
    for trial in range(60):
        torch.manual_seed(trial)
        states, steps = 2 + trial % 3, 150
        matrix = torch.rand(states, states) * (torch.rand(states, states) < 0.4)
        moves = (matrix + torch.eye(states)).log().log_softmax(-1)
        moves = torch.where(torch.rand(states, states) < 0.2, moves - 900.0, moves)
        level = (1.0, 5.0, 30.0)[trial % 3] * torch.randn(5, 1, states)
        emission = level.repeat_interleave(steps // 5, 0) + torch.randn(steps, 1, states)
        emission = with_zeros(emission, 0.02 * (trial % 2))
        first = with_zeros(50.0 * torch.randn(1, states), 0.3)
        chains = Potentials(first, moves[None, None], emission)
        smoothed = chain_scaled.scaled_forward_backward(chains)
        if smoothed is not None:
            kept += 1
            in_logs = chain_log.log_forward_backward(chains)
            torch.testing.assert_close(
                smoothed.log_evidence, in_logs.log_evidence, rtol=1e-12, atol=1e-12
            )
            truth = (in_logs.filtered + in_logs.future).softmax(-1)
            torch.testing.assert_close(smoothed.marginals, truth, rtol=1e-9, atol=1e-11)
    assert 20 < kept < 60


def test_the_smallest_of_numbers_is_near_zero_too() -> None:
    matrix = torch.tensor([[1.0, 5e-324], [0.5, 0.5]])
    chains = Potentials(torch.zeros(1, 2), matrix.log()[None, None], torch.randn(4, 1, 2))
    assert is_scaled(chains)
