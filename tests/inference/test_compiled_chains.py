"""Compiled forward-backward against the recursions in tensors, every path, and fifty digits."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ember.inference.expectation.chains import compiled as chain_compiled
from ember.inference.expectation.chains import evidence as chain
from ember.inference.expectation.chains.blocks import Potentials
from ember.inference.expectation.chains.compiled import (
    CompiledChains,
    compiled_forward_backward,
    is_worth_compiling,
)
from ember.inference.expectation.chains.evidence import chain_log_evidence
from ember.inference.expectation.chains.log_space import SmoothedInLogs, log_forward_backward
from ember.inference.expectation.chains.scaled import Smoothed, scaled_forward_backward
from ember.inference.numerics.log_space import IMPOSSIBLE
from tests.inference.chain_checks import fifty_digits, in_blocks

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)


@pytest.fixture(autouse=True)
def _whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBER_COMPILED", raising=False)
    monkeypatch.setattr(chain_compiled, "WORTH", 0)


@contextlib.contextmanager
def in_tensors() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBER_COMPILED", "0")
        yield


def chains_of(
    steps: int,
    rows: int,
    states: int,
    *,
    times: int = 1,
    groups: int = 1,
    level: float = 3.0,
    ragged: bool = False,
) -> Potentials:
    """Random chains; ``level`` is how far apart emission potentials are."""
    moves = 2.0 * torch.randn(times, groups, states, states)
    return Potentials(
        torch.randn(rows, states),
        moves.log_softmax(-1),
        level * torch.randn(steps, rows, states),
        torch.randint(0, steps + 1, (rows,)) if ragged else None,
    )


def expectations(chains: Potentials, weights: Tensor) -> list[Tensor]:
    """Log evidence and its gradients."""
    given = (chains.initial, chains.transition, chains.emission)
    leaves = [each.detach().requires_grad_() for each in given]
    evidence = chain_log_evidence(Potentials(leaves[0], leaves[1], leaves[2], chains.lengths))
    return [evidence.detach(), *torch.autograd.grad((weights * evidence).sum(), leaves)]


def assert_same_as_in_tensors(chains: Potentials) -> None:
    """With any weights and with none; and it is trusted where tensors without blocks are."""
    each = torch.rand(len(chains.initial))
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(patch, 1)
        trusted = scaled_forward_backward(chains) is not None
    assert isinstance(chain.smoother(chains), CompiledChains if trusted else SmoothedInLogs)
    for weights in (each, torch.ones_like(each)):
        ours = expectations(chains, weights)
        with in_tensors():
            assert not isinstance(chain.smoother(chains), CompiledChains)
            theirs = expectations(chains, weights)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("states", [1, 2, 3, 4, 5, 8, 11, 17, 30])
@pytest.mark.parametrize(("steps", "rows"), [(1, 1), (1, 7), (2, 3), (130, 1), (33, 20), (700, 2)])
def test_random_chains(steps: int, rows: int, states: int) -> None:
    assert_same_as_in_tensors(chains_of(steps, rows, states))


@pytest.mark.parametrize("states", [1, 2, 5, 10, 11])
@pytest.mark.parametrize("rows", [8, 33, 75])
def test_chains_side_by_side_end_when_they_end(rows: int, states: int) -> None:
    """Some have no steps at all, and some end where others go on."""
    chains = chains_of(60, rows, states)
    lengths = torch.randint(30, 61, (rows,))
    lengths[::7], lengths[3] = 0, 1
    ragged = Potentials(chains.initial, chains.transition, chains.emission, lengths)
    assert_same_as_in_tensors(ragged)
    moves = torch.where(torch.rand(states, states) < 0.4, -torch.inf, chains.transition)
    moves.diagonal(dim1=-2, dim2=-1).fill_(-0.5)
    assert_same_as_in_tensors(Potentials(chains.initial, moves, chains.emission, lengths))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("times", [1, 149])
def test_moves_that_vary(
    times: int, groups: int, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = chains_of(150, 12, 5, times=times, groups=groups, ragged=ragged)
    assert_same_as_in_tensors(chains)


def test_what_lies_past_the_end_is_never_looked_at() -> None:
    chains = chains_of(40, 9, 3, ragged=True)
    assert chains.lengths is not None
    beyond = torch.arange(40).unsqueeze(1) >= chains.lengths
    hidden = chains.emission.masked_fill(beyond.unsqueeze(-1), torch.nan)
    given = Potentials(chains.initial, chains.transition, hidden, chains.lengths)
    ours = expectations(given, torch.ones(9))
    with in_tensors():
        theirs = expectations(chains, torch.ones(9))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_emissions_of_any_strides(
    order: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = chains_of(70, 6, 3)
    back = [order.index(dim) for dim in range(3)]
    emission = chains.emission.permute(order).contiguous().permute(back)
    moved = Potentials(chains.initial, chains.transition, emission)
    marginals, _ = chain.smoother(moved).expectations(moved, torch.ones(6))
    assert marginals.stride() == emission.stride()
    assert_same_as_in_tensors(moved)
    shared = Potentials(chains.initial, chains.transition, emission[:, :1].expand(-1, 6, -1))
    assert_same_as_in_tensors(shared)


@pytest.mark.parametrize("nothing", [-torch.inf, IMPOSSIBLE])
@pytest.mark.parametrize("times", [1, 4])
def test_zeros_equal_every_path(times: int, nothing: float) -> None:
    steps, states, tried = 5, 3, 0
    paths = torch.tensor(list(itertools.product(range(states), repeat=steps)))

    def with_zeros(tensor: Tensor, share: float) -> Tensor:
        return torch.where(torch.rand_like(tensor) < share, nothing, tensor)

    for _ in range(60):
        initial = with_zeros(torch.randn(1, states), 0.4)
        moves = with_zeros(torch.randn(times, 1, states, states), 0.4)
        emission = with_zeros(3.0 * torch.randn(steps, 1, states), 0.2)
        each = moves.expand(steps - 1, 1, states, states)[:, 0]
        joint = initial[0, paths[:, 0]] + sum(emission[t, 0, paths[:, t]] for t in range(steps))
        for t in range(steps - 1):
            joint = joint + each[t, paths[:, t], paths[:, t + 1]]
        if not bool((joint > 0.1 * IMPOSSIBLE).any()):
            continue
        tried += 1
        chains = Potentials(initial, moves, emission)
        assert isinstance(chain.smoother(chains), CompiledChains)
        evidence, first, _, marginals = expectations(chains, torch.ones(1))
        torch.testing.assert_close(evidence[0], joint.logsumexp(0), rtol=1e-12, atol=1e-12)
        truth = torch.zeros(steps, states)
        for path, weight in zip(paths.tolist(), joint.softmax(0), strict=True):
            for t, state in enumerate(path):
                truth[t, state] += weight
        torch.testing.assert_close(marginals[:, 0], truth, rtol=1e-12, atol=1e-14)
        assert torch.equal(marginals[:, 0] == 0, truth == 0)  # what is ruled out is exactly so
        torch.testing.assert_close(first[0], truth[0], rtol=1e-12, atol=1e-14)
    assert tried > 10


def test_impossible_data_are_left_to_logarithms() -> None:
    chains = chains_of(20, 4, 3)
    for value in (-torch.inf, torch.inf, torch.nan):
        emission = chains.emission.clone()
        emission[7, 2] = value
        given = Potentials(chains.initial, chains.transition, emission)
        assert isinstance(chain.smoother(given), SmoothedInLogs)
    emission = chains.emission.clone()
    emission[7, 2, 1] = torch.nan
    assert bool(
        chain_log_evidence(Potentials(chains.initial, chains.transition, emission))[2].isnan()
    )
    emission[7, 2] = IMPOSSIBLE
    given = Potentials(chains.initial, chains.transition, emission)
    assert_same_as_in_tensors(given)


@pytest.mark.parametrize("level", [1e-3, 300.0, 1e5])
@pytest.mark.parametrize("sparse", [0.0, 0.5])
def test_extreme_potentials(level: float, sparse: float) -> None:
    chains = chains_of(300, 3, 6, level=level)
    moves = torch.where(torch.rand(6, 6) < sparse, -torch.inf, chains.transition)
    moves.diagonal(dim1=-2, dim2=-1).fill_(-0.5)
    assert_same_as_in_tensors(Potentials(chains.initial, moves, chains.emission))


@pytest.mark.parametrize("nearly", [1e-12, 1e-250])
def test_nearly_deterministic_chain_against_fifty_digits(nearly: float) -> None:
    steps, states = 200, 3
    matrix = (1 - 3 * nearly) * torch.eye(states).roll(1, 1) + nearly
    initial = torch.tensor([[0.2, 0.3, 0.5]]).log()
    chains = Potentials(initial, matrix.log()[None, None], 5.0 * torch.randn(steps, 1, states))
    assert isinstance(chain.smoother(chains), CompiledChains)
    evidence, _, _, marginals = expectations(chains, torch.ones(1))
    exact, truth = fifty_digits(chains)
    assert float(evidence) == pytest.approx(exact, rel=1e-13)
    torch.testing.assert_close(marginals[:, 0], truth, rtol=1e-9, atol=1e-14)


def test_a_state_that_comes_back_is_left_to_logarithms() -> None:
    """Two states that never mix: going forward the winner is lost, and going backward too."""
    emission = torch.zeros(120, 1, 2)
    emission[:40, 0, 1], emission[80:, 0, 1] = -50.0, -50.0
    emission[40:80, 0, 0] = -125.0
    chains = Potentials(torch.full((1, 2), 0.5).log(), torch.eye(2).log()[None, None], emission)
    assert isinstance(chain.smoother(chains), SmoothedInLogs)
    assert float(chain_log_evidence(chains)) == pytest.approx(-4000.0 - 0.6931471805599453)


@pytest.mark.parametrize("rows", [1, 9])
def test_first_states_that_data_rule_out_are_left_to_logarithms(rows: int) -> None:
    """The sum that the first step is divided by is zero."""
    first = torch.tensor([0.0, -torch.inf]).expand(rows, 2)
    emission = torch.zeros(30, rows, 2)
    emission[0, :, 0] = -1e5
    moves = torch.full((1, 1, 2, 2), 0.5).log()
    chains = Potentials(first, moves, emission)
    assert isinstance(chain.smoother(chains), SmoothedInLogs)
    torch.testing.assert_close(chain_log_evidence(chains), torch.full((rows,), -1e5))


def test_it_is_trusted_where_tensors_are() -> None:
    """Chains that lose states for a while: scaled numbers are right, or there are none."""
    kept = 0
    for trial in range(60):
        torch.manual_seed(trial)
        states, steps = 2 + trial % 3, 150
        matrix = torch.rand(states, states) * (torch.rand(states, states) < 0.4)
        moves = (matrix + torch.eye(states)).log().log_softmax(-1)
        moves = torch.where(torch.rand(states, states) < 0.2, moves - 900.0, moves)
        level = (1.0, 5.0, 30.0)[trial % 3] * torch.randn(5, 1, states)
        emission = level.repeat_interleave(steps // 5, 0) + torch.randn(steps, 1, states)
        chains = Potentials(torch.randn(1, states), moves[None, None], emission)
        ours, theirs = compiled_forward_backward(chains), scaled_forward_backward(chains)
        if theirs is not None:
            assert ours is not None
        if ours is not None:
            kept += 1
            truth = log_forward_backward(chains)
            torch.testing.assert_close(ours.log_evidence, truth.log_evidence, rtol=1e-12, atol=0.0)
            for one, other in zip(
                ours.expectations(chains, torch.ones(1)),
                truth.expectations(chains, torch.ones(1)),
                strict=True,
            ):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    assert 20 < kept < 60


@pytest.mark.parametrize(("steps", "rows"), [(60_000, 1), (30, 1000)])
def test_one_long_and_many_short(steps: int, rows: int) -> None:
    chains = chains_of(steps, rows, 4, ragged=rows > 1, level=40.0)
    weights = torch.rand(rows)
    ours = expectations(chains, weights)
    with in_tensors():
        theirs = expectations(chains, weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_threads_do_not_change_a_bit() -> None:
    threads, found = torch.get_num_threads(), []
    chains, weights = chains_of(50, 300, 5, groups=3, ragged=True), torch.rand(300)
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            found.append(expectations(chains, weights))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_curvature_is_that_of_tensors() -> None:
    chains = chains_of(12, 3, 4, ragged=True)

    def evidence(x: Tensor) -> Tensor:
        moves = chains.transition * (1.0 + x)
        moved = Potentials(chains.initial + x, moves, chains.emission * x.exp(), chains.lengths)
        return chain_log_evidence(moved).sum()

    at = 0.3 * torch.randn(4)
    ours = torch.autograd.functional.hessian(evidence, at)
    with in_tensors():
        theirs = torch.autograd.functional.hessian(evidence, at)
    torch.testing.assert_close(ours, theirs)


def test_what_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = chains_of(30, 4, 3)
    single = Potentials(chains.initial.float(), chains.transition.float(), chains.emission.float())
    assert is_worth_compiling(chains)
    assert not is_worth_compiling(single)
    with in_tensors():
        assert not is_worth_compiling(chains)
        assert isinstance(chain.smoother(chains), Smoothed)
    monkeypatch.setattr(chain_compiled, "WORTH", 50_000)
    assert not is_worth_compiling(chains)


def test_code_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    """As where Ember is installed in a folder that cannot be written to, for a user without one."""
    from ember.inference.expectation.chains.compiled_chunks import compiled

    made: dict[str, Callable[[float], float]] = {}
    exec("def twice(x):\n    return 2.0 * x", made)  # a function without a file
    assert compiled("f8(f8)")(made["twice"])(1.5) == 3.0


@pytest.mark.parametrize("name", ["compiled_steps.py", "compiled_lanes.py"])
def test_kept_code_is_of_the_functions_that_it_calls(name: str) -> None:
    """numba compiles anew where the file of a loop changes, not those of what the loop calls."""
    folder = Path(chain_compiled.__file__).parent
    digest = hashlib.sha256((folder / "compiled_chunks.py").read_bytes()).hexdigest()[:16]
    assert f"# compiled_chunks.py: {digest}\n" in (folder / name).read_text(encoding="utf-8")
