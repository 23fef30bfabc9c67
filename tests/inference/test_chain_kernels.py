"""Forward-backward and Viterbi against every path, 50-digit arithmetic, and very long chains."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from ember.inference.expectation.chains import blocks as chain_blocks
from ember.inference.expectation.chains import evidence as chain
from ember.inference.expectation.chains import log_space as chain_log
from ember.inference.expectation.chains import scaled as chain_scaled
from ember.inference.expectation.chains.blocks import Potentials
from ember.inference.expectation.chains.evidence import chain_log_evidence
from ember.inference.expectation.chains.step import ChainStep
from ember.inference.factors.chain import Chain
from tests.further import further
from tests.inference.chain_checks import fifty_digits, in_blocks, only_log_space
from tests.inference.random_chains import K, R, T, random_chains


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)


def every_path(chains: Potentials, r: int) -> tuple[list[tuple[int, ...]], Tensor]:
    """All paths of chain ``r`` and their log joints, by plain addition."""
    steps, _, states = chains.emission.shape
    end = steps if chains.lengths is None else int(chains.lengths[r])
    paths = list(itertools.product(range(states), repeat=end))
    joints = []
    for path in paths:
        total = chains.initial[r, path[0]]
        for t, z in enumerate(path):
            total = total + chains.emission[t, r, z]
        for t, (i, j) in enumerate(itertools.pairwise(path)):
            step = t if len(chains.transition) > 1 else 0
            row = r if chains.transition.shape[1] > 1 else 0
            total = total + chains.transition[step, row, i, j]
        joints.append(total)
    return paths, torch.stack(joints)


@pytest.mark.parametrize("in_log_space", [False, True])
@pytest.mark.parametrize("blocks", [1, 3, *further(2, 6)])
@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 3, 1])])
@pytest.mark.parametrize("own", [1, R])
@pytest.mark.parametrize("times", [1, T - 1])
def test_evidence_gradient_and_best_path_equal_every_path(
    times: int,
    own: int,
    lengths: Tensor | None,
    blocks: int,
    in_log_space: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_blocks(monkeypatch, blocks)
    if in_log_space:
        only_log_space(monkeypatch)
    chains = random_chains(times, own, lengths)
    leaves = (chains.initial, chains.transition, chains.emission)
    weights = torch.tensor([1.0, 2.0, 0.5])
    joints = [every_path(chains, r)[1] for r in range(R)]
    truth = torch.stack([joint.logsumexp(0) for joint in joints])
    ours = chain_log_evidence(chains)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weights).sum(), leaves),
        torch.autograd.grad((truth * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
    best = chain_log_evidence(chains, maximum=True)
    torch.testing.assert_close(best, torch.stack([joint.max() for joint in joints]))


@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 3, 1])])
def test_pairs_and_predictions_equal_every_path(lengths: Tensor | None) -> None:
    chains = random_chains(1, 1, lengths).detach()
    moves = chains.transition.log_softmax(-1)
    chains = Potentials(chains.initial.log_softmax(-1), moves, chains.emission, lengths)
    pairs, ahead = chain.pair_marginals(chains), chain.predictions(chains)
    for r in range(R):
        paths, joints = every_path(chains, r)
        weights = joints.softmax(0)
        expected = torch.zeros(T - 1, K, K)
        for path, weight in zip(paths, weights, strict=True):
            for t, (i, j) in enumerate(itertools.pairwise(path)):
                expected[t, i, j] += weight
        torch.testing.assert_close(pairs[:, r], expected, rtol=1e-10, atol=1e-12)
        end = len(paths[0])
        for t in range(1, end + 1):
            cut = Potentials(chains.initial, moves, chains.emission[:t])
            paths, joints = every_path(cut, r)
            last = torch.tensor([path[-1] for path in paths])
            now = torch.zeros(K).index_add(0, last, joints.softmax(0))
            torch.testing.assert_close(ahead[t, r], now @ moves[0, 0].exp())
    torch.testing.assert_close(ahead[0], chains.initial.exp())


@pytest.mark.parametrize("in_log_space", [False, True])
def test_nearly_deterministic_chain_against_fifty_digits(
    in_log_space: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_log_space:
        only_log_space(monkeypatch)
    steps, states = 200, 3
    near = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    matrix = (1 - 3e-12) * near + 1e-12
    emission = 5.0 * torch.randn(steps, 1, states)
    initial = torch.tensor([[0.2, 0.3, 0.5]]).log()
    emission.requires_grad_()
    chains = Potentials(initial, matrix.log()[None, None], emission)
    evidence = chain_log_evidence(chains).sum()
    (marginals,) = torch.autograd.grad(evidence, emission)
    exact, truth = fifty_digits(chains)
    assert float(evidence.detach()) == pytest.approx(exact, rel=1e-13)
    torch.testing.assert_close(marginals[:, 0], truth, rtol=1e-9, atol=1e-14)


def test_a_state_that_seems_lost_may_win() -> None:
    # Two states that never mix: the first half favours one by exp(2000), the second the other.
    emission = torch.zeros(100, 1, 2)
    emission[:50, 0, 1] = -40.0
    emission[50:, 0, 0] = -80.0
    matrix = torch.eye(2).log().clamp_min(-1e30)
    emission.requires_grad_()
    chains = Potentials(torch.full((1, 2), 0.5).log(), matrix[None, None], emission)
    evidence = chain_log_evidence(chains)
    assert float(evidence.detach()) == pytest.approx(-2000.0 - torch.log(torch.tensor(2.0)))
    (marginals,) = torch.autograd.grad(evidence.sum(), emission)
    torch.testing.assert_close(marginals[:, 0, 1], torch.ones(100))


def test_no_underflow_at_a_hundred_thousand_steps() -> None:
    steps, states = 100_000, 4
    emission = -200.0 * torch.rand(steps, 1, states)
    matrix = torch.randn(states, states).log_softmax(-1)
    chains = Potentials(torch.full((1, states), 0.25).log(), matrix[None, None], emission)
    smoothed = chain_scaled.scaled_forward_backward(chains)
    assert smoothed is not None
    in_logs = chain_log.log_forward_backward(chains)
    torch.testing.assert_close(smoothed.log_evidence, in_logs.log_evidence, rtol=1e-13, atol=0.0)
    truth = (in_logs.filtered + in_logs.future).softmax(-1)
    torch.testing.assert_close(smoothed.marginals, truth, rtol=1e-6, atol=1e-9)
    sums = smoothed.marginals.sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-12, atol=0.0)
    best = float(chain_log_evidence(chains, maximum=True))
    assert best < float(in_logs.log_evidence)


def test_blocks_do_not_change_a_long_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    emission = torch.randn(997, 2, 3)
    matrix = torch.randn(3, 3).log_softmax(-1)
    lengths = torch.tensor([997, 500])
    chains = Potentials(torch.zeros(2, 3).log_softmax(-1), matrix[None, None], emission, lengths)
    results = []
    for blocks in (1, 7, 31, 300):
        in_blocks(monkeypatch, blocks)
        smoothed = chain_scaled.scaled_forward_backward(chains)
        assert smoothed is not None
        path, best = chain_log.viterbi(chains)
        results.append((smoothed.log_evidence, smoothed.marginals[:500], best, path[:500]))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("in_log_space", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 3, 1, 0, 6, 5])])
@pytest.mark.parametrize("times", [1, T - 1])
def test_chains_that_share_a_matrix_are_as_if_each_had_its_own(
    times: int,
    lengths: Tensor | None,
    blocks: int,
    in_log_space: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_blocks(monkeypatch, blocks)
    if in_log_space:
        only_log_space(monkeypatch)
    rows, groups = 6, 2
    initial, emission = torch.randn(rows, K), 3.0 * torch.randn(T, rows, K)
    shared = torch.randn(times, groups, K, K).requires_grad_()
    weights = torch.rand(rows)

    def answers(transition: Tensor) -> list[Tensor]:
        leaves = [initial.clone().requires_grad_(), emission.clone().requires_grad_()]
        chains = Potentials(leaves[0], transition, leaves[1], lengths)
        found = []
        for maximum in (False, True):
            evidence = chain_log_evidence(chains, maximum)
            total = (evidence * weights).sum()
            found += [evidence, *torch.autograd.grad(total, (*leaves, shared))]
        there = chains.detach()
        return [*found, chain.pair_marginals(there), chain.predictions(there)]

    expanded = answers(shared.repeat_interleave(rows // groups, 1))
    for one, other in zip(answers(shared), expanded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_one_step_has_no_moves() -> None:
    initial, emission = torch.randn(4, K), torch.randn(1, 4, K)
    transition = torch.randn(1, 2, K, K).requires_grad_()
    for maximum, reduce in ((False, torch.logsumexp), (True, torch.amax)):
        evidence = chain_log_evidence(Potentials(initial, transition, emission), maximum)
        torch.testing.assert_close(evidence, reduce(initial + emission[0], -1))
        (moves,) = torch.autograd.grad(evidence.sum(), transition, materialize_grads=True)
        assert torch.equal(moves, torch.zeros_like(moves))


@pytest.mark.parametrize(
    ("varies", "matrices"), [((), 1), ((0,), 2), ((1,), 6), ((0, 1), 6), ((0, 2), 24)]
)
def test_rows_share_matrices_of_the_leading_dims(varies: tuple[int, ...], matrices: int) -> None:
    sizes = (2, 3, 4)
    own = [size if i in varies else 1 for i, size in enumerate(sizes)]
    leaves = [torch.randn(*sizes, K), torch.randn(1, *own, K, K), torch.randn(T, *sizes, K)]
    shown = ChainStep(
        Chain("z", "y", "t", 0, 1, T, at_once=True),
        ("a", "b", "c"),
        sizes,
        K,
        (0, ((), ())),
        ((1, ((), ())),),
        ((2, ((), ())),),
        None,
    )
    chains = shown.potentials(leaves)
    assert chains.transition.shape == (1, matrices, K, K)
    expanded = leaves[1].expand(1, *sizes, K, K).reshape(1, 24, K, K)
    assert torch.equal(chains.transition.repeat_interleave(24 // matrices, 1), expanded)
    silent = dataclasses.replace(shown, chain=dataclasses.replace(shown.chain, at_once=False))
    first = (leaves[0].reshape(24, K, 1) + expanded[0]).logsumexp(1)
    torch.testing.assert_close(silent.potentials(leaves, steps_only=True).initial, first)


@pytest.mark.parametrize(
    ("rows", "states", "whole"), [(1, 5, False), (1, 60, True), (10, 30, True)]
)
def test_chains_of_many_states_are_left_whole(rows: int, states: int, whole: bool) -> None:
    """Transfer matrices take K^3 products a step, the recursion itself K^2."""
    matrix = torch.zeros(1, 1, states, states)
    chains = Potentials(torch.zeros(rows, states), matrix, torch.zeros(500, rows, states))
    assert (chain_blocks.cut(chains).count == 1) is whole
    scaled = chain_blocks.cut(chains, work=chain_scaled.TRANSFER_WORK)
    assert (scaled.count == 1) is whole


def test_sparse_moves_of_many_states_need_no_logarithms() -> None:
    """Sixty states whose moves EM has made all but impossible: scaling alone is enough."""
    steps, states = 300, 60
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(states, states, generator=generator)
    matrix = (200.0 * noise).log_softmax(-1)
    emission = -200.0 * torch.rand(steps, 1, states, generator=generator)
    chains = Potentials(torch.full((1, states), 1.0 / 60).log(), matrix[None, None], emission)
    smoothed = chain_scaled.scaled_forward_backward(chains)
    assert smoothed is not None
    in_logs = chain_log.log_forward_backward(chains)
    torch.testing.assert_close(smoothed.log_evidence, in_logs.log_evidence, rtol=1e-12, atol=0.0)
    truth = (in_logs.filtered + in_logs.future).softmax(-1)
    torch.testing.assert_close(smoothed.marginals, truth, rtol=1e-6, atol=1e-10)
