"""Gaussian integrals against 50-digit arithmetic, and their derivatives against autograd's."""

import pickle
from collections.abc import Callable

import pytest
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ember.inference.numerics.gaussian import block_diagonal as block_diagonal_file
from ember.inference.numerics.gaussian import blocks as blocks_file
from ember.inference.numerics.gaussian import lockstep as lockstep_file
from ember.inference.numerics.gaussian import rounds as rounds_file
from ember.inference.numerics.gaussian.block_diagonal import BlockDiagonalSystem
from ember.inference.numerics.gaussian.blocks import block_log_integral
from ember.inference.numerics.gaussian.chain import ChainSystem
from ember.inference.numerics.gaussian.dense import DenseSystem
from ember.inference.numerics.gaussian.levels import levels_of
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.rounds import elimination_rounds
from ember.inference.numerics.gaussian.schur import SchurSystem
from ember.inference.numerics.gaussian.separation import blocks_apart
from ember.inference.numerics.gaussian.sparse import SparseSystem
from ember.inference.numerics.gaussian.system import GaussianSystem
from ember.inference.numerics.gaussian.systems import gaussian_system
from tests.inference.gaussian_oracle import exact, full_matrix, random_potentials

EXACT = 1e-12


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)


def dense_log_integral(info: Tensor, precision: Tensor) -> Tensor:
    """The definition, by operations that autograd differentiates."""
    mean = torch.linalg.solve(precision, info.unsqueeze(-1)).squeeze(-1)
    constant = info.shape[-1] * torch.log(torch.tensor(2.0 * torch.pi))
    value: Tensor = 0.5 * (constant - torch.logdet(precision) + (info * mean).sum(-1))
    return value


# -- patterns ---------------------------------------------------------------------------------


def test_a_pattern_holds_each_pair_once_and_the_whole_diagonal() -> None:
    pattern = Pattern.of(4, torch.tensor([0, 3, 0, 2, 1]), torch.tensor([3, 0, 2, 0, 1]))
    assert pattern.rows.tolist() == [0, 1, 2, 2, 3, 3]
    assert pattern.columns.tolist() == [0, 1, 0, 2, 0, 3]
    places = pattern.place(torch.tensor([0, 3, 2]), torch.tensor([3, 0, 2]))
    assert places.tolist() == [4, 4, 3]
    assert pattern.find(torch.tensor([1, 3]), torch.tensor([2, 3])).tolist() == [-1, 5]
    with pytest.raises(ValueError, match="not in the pattern"):
        pattern.place(torch.tensor([1]), torch.tensor([2]))


# -- blocks -----------------------------------------------------------------------------------


def matrices(size: int, *batch: int) -> Tensor:
    root = torch.randn(*batch, size, size + 2)
    return root @ root.mT


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 30])
@pytest.mark.parametrize(
    ("infos", "precisions"),
    [((), ()), ((7,), (7,)), ((7,), ()), ((), (7,)), ((3, 7), (7,)), ((3, 1, 2), (4, 1)),
     ((1300,), (1300,))],
)  # fmt: skip
def test_blocks_equal_the_definition(
    size: int, infos: tuple[int, ...], precisions: tuple[int, ...]
) -> None:
    if size == 30 and len(infos) == 1 and infos[0] > 100:
        infos, precisions = (20,), (20,)
    info, precision = torch.randn(*infos, size), matrices(size, *precisions)
    given = info.requires_grad_(), precision.requires_grad_()
    value, expected = block_log_integral(*given), dense_log_integral(*given)
    assert value.shape == expected.shape
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(block_log_integral(info.detach(), precision.detach()), value)
    weights = torch.randn_like(value)
    gradients = torch.autograd.grad(value, given, weights)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, given, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [1, 2, 4, 7])
@pytest.mark.parametrize("count", [1, 1500])
def test_blocks_hold_their_digits_on_any_scale(size: int, count: int) -> None:
    scale = torch.logspace(6, -1.5, size) if size > 1 else torch.tensor([1e6])
    info = torch.randn(count, size) * scale
    precision = matrices(size, count) * scale * scale.unsqueeze(-1)
    # A matrix that is its own transpose to the last bit, for the oracle reads both triangles.
    precision = torch.tril(precision) + torch.tril(precision, -1).mT
    value = block_log_integral(info.requires_grad_(), precision.requires_grad_())
    mean, second = torch.autograd.grad(value.sum(), [info, precision])
    for row in range(min(count, 3)):
        exact_value, exact_mean, covariance = exact(info[row].detach(), precision[row].detach())
        deviation = covariance.diagonal().sqrt()
        tolerance = EXACT * torch.linalg.cond(precision[row].detach() / scale / scale[:, None])
        assert abs(value[row] - exact_value) < tolerance * (abs(exact_value) + size)
        length = 1.0 + (exact_mean / deviation).abs().max()
        assert float(((mean[row] - exact_mean) / deviation).abs().max()) < tolerance * length
        squares = covariance + exact_mean * exact_mean.unsqueeze(-1)
        error = (-2.0 * second[row] - squares) / deviation / deviation.unsqueeze(-1)
        assert float(error.abs().max()) < tolerance * length**2


@pytest.mark.parametrize("size", [1, 3, 6])
@pytest.mark.parametrize(("infos", "precisions"), [((4,), (4,)), ((4,), ()), ((), (4,))])
def test_second_derivatives_of_blocks(
    size: int, infos: tuple[int, ...], precisions: tuple[int, ...]
) -> None:
    info, root = torch.randn(*infos, size), torch.randn(*precisions, size, size + 2)

    def value(info: Tensor, root: Tensor) -> Tensor:
        return block_log_integral(info, root @ root.mT)

    assert torch.autograd.gradgradcheck(value, (info.requires_grad_(), root.requires_grad_()))
    assert torch.autograd.gradgradcheck(value, (info.detach(), root))
    assert torch.autograd.gradgradcheck(value, (info, root.detach()))


@pytest.mark.parametrize("count", [2, 2000])
@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_block_that_is_not_positive_definite_gives_nan_alone(size: int, count: int) -> None:
    for bad in (-1.0, 0.0):
        precision = torch.eye(size).repeat(count, 1, 1)
        precision[1, -1, -1] = bad
        value = block_log_integral(torch.ones(count, size), precision)
        assert value.isnan().nonzero().tolist() == [[1]]


# -- systems ----------------------------------------------------------------------------------


def blocks_of(sizes: list[int], whole: bool = True) -> Pattern:
    """Components whose entries do not lie next to each other; chains if they are not ``whole``."""
    count, rows, columns, start = sum(sizes), [], [], 0
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    for size in sizes:
        for i in range(size):
            for j in range(0 if whole else max(0, i - 1), i):
                rows.append(start + i)
                columns.append(start + j)
        start += size
    indices = torch.tensor([rows, columns], dtype=torch.long).reshape(2, -1)
    return Pattern.of(count, shuffled[indices[0]], shuffled[indices[1]])


def block_diagonal(pattern: Pattern) -> BlockDiagonalSystem:
    system = gaussian_system(pattern)
    assert isinstance(system, BlockDiagonalSystem)
    return system


def schur(pattern: Pattern) -> SchurSystem:
    graph = pattern.graph()
    _, components = connected_components(graph, directed=False)
    numbers = (torch.from_numpy(each).long() for each in (components, blocks_apart(graph)))
    return SchurSystem(pattern, *numbers)


def crossed(levels: tuple[int, int], size: int, rows: int) -> Pattern:
    """Two factors with ``size`` effects for each level, and rows that read one level of each."""
    generator = torch.Generator().manual_seed(4)
    one, other = (torch.randint(n, (rows,), generator=generator) for n in levels)
    starts = one * size, (levels[0] + other) * size
    entries = torch.stack([start + i for start in starts for i in range(size)])
    pairs = torch.combinations(torch.arange(2 * size)).T
    return Pattern.of(sum(levels) * size, entries[pairs[0]].flatten(), entries[pairs[1]].flatten())


def nested(outer: int, inner: int, size: int) -> Pattern:
    """Groups in a ring, each with ``inner`` groups of ``size`` entries inside it."""
    rows, columns = [], []
    for group in range(outer):
        rows.append(group)
        columns.append((group + 1) % outer)
        for i in range(inner):
            own = [outer + (group * inner + i) * size + j for j in range(size)]
            for a in own:
                rows += [a] * (1 + len(own))
                columns += [group, *own]
    count = outer * (1 + inner * size)
    return Pattern.of(count, torch.tensor(rows), torch.tensor(columns))


def chain(pattern: Pattern) -> ChainSystem:
    graph = pattern.graph()
    _, components = connected_components(graph, directed=False)
    levels = levels_of(graph, components)
    return ChainSystem(pattern, torch.from_numpy(components).long(), torch.from_numpy(levels))


def state_space(*steps: int, states: int) -> Pattern:
    """Chains in which all states of a step are coupled to all of the next."""
    rows: list[int] = []
    columns: list[int] = []
    start = 0
    for length in steps:
        for row in range(length * states):
            first = max(0, row // states - 1) * states
            rows += [start + row] * (row - first + 1)
            columns += range(start + first, start + row + 1)
        start += length * states
    return Pattern.of(start, torch.tensor(rows), torch.tensor(columns))


def sparse(pattern: Pattern) -> SparseSystem:
    graph = pattern.graph()
    _, components = connected_components(graph, directed=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds_file, "SMALL", 2)
        patch.setattr(rounds_file, "FULL", 0.9)
        order = elimination_rounds(graph)
    assert order.rounds
    return SparseSystem(pattern, torch.from_numpy(components).long(), order)


def pedigree(count: int) -> Pattern:
    """Each entry is coupled to two earlier ones, which are coupled to each other."""
    generator = torch.Generator().manual_seed(5)
    parents = [torch.randint(i, (2,), generator=generator).tolist() for i in range(1, count)]
    rows = [row for i, (one, _) in enumerate(parents, 1) for row in (i, i, one)]
    columns = [column for one, other in parents for column in (one, other, other)]
    return Pattern.of(count, torch.tensor(rows), torch.tensor(columns))


SYSTEMS: dict[str, Callable[[], GaussianSystem]] = {
    "alone": lambda: block_diagonal(blocks_of([1] * 6)),
    "pairs": lambda: block_diagonal(blocks_of([2] * 5)),
    "some sizes": lambda: block_diagonal(blocks_of([3, 1, 2, 7, 3, 3])),
    "many sizes": lambda: block_diagonal(blocks_of([7, 2, 3, 4, 1, 5, 6, 9, 1, 11, 13])),
    "paths": lambda: block_diagonal(blocks_of([5, 2, 5, 6], whole=False)),
    "crossed": lambda: schur(crossed((9, 4), 1, 30)),
    "crossed slopes": lambda: schur(crossed((7, 3), 2, 15)),
    "crossed apart": lambda: schur(crossed((12, 8), 1, 12)),
    "nested": lambda: schur(nested(10, 2, 1)),
    "nested slopes": lambda: schur(nested(8, 1, 2)),
    "a tree": lambda: schur(blocks_of([9, 12, 1], whole=False)),
    "a step": lambda: chain(state_space(1, states=3)),
    "two steps": lambda: chain(state_space(2, states=2)),
    "states": lambda: chain(state_space(9, states=3)),
    "chains": lambda: chain(state_space(8, 1, 5, 2, states=2)),
    "a walk": lambda: chain(state_space(14, states=1)),
    "shuffled walks": lambda: chain(blocks_of([9, 2, 6, 1], whole=False)),
    "a ring": lambda: chain(nested(12, 1, 1)),
    "a pedigree": lambda: sparse(pedigree(25)),
    "sparse walks": lambda: sparse(blocks_of([9, 2, 6, 1, 1], whole=False)),
    "sparse crossed": lambda: sparse(crossed((7, 4), 1, 20)),
    "dense": lambda: DenseSystem(blocks_of([9])),
    "dense with gaps": lambda: DenseSystem(blocks_of([4, 7, 1], whole=False)),
}
SCALES = {"even": 0.0, "uneven": 7.5}
cases = pytest.mark.parametrize("name", SYSTEMS)


@pytest.fixture
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops over the entries of small matrices even if there are few, or LAPACK for all."""
    for module in (block_diagonal_file, blocks_file, lockstep_file):
        monkeypatch.setattr(module, "MANY", 0 if request.param else 10**9)


@cases
@pytest.mark.parametrize("loops", [False, True], indirect=True, ids=["lapack", "loops"])
@pytest.mark.parametrize("spread", SCALES.values(), ids=SCALES)
@pytest.mark.usefixtures("loops")
def test_systems_equal_fifty_digits(name: str, spread: float) -> None:
    system = SYSTEMS[name]()
    pattern = system.pattern
    # From a variance of 1e-12 to one of 1e3 in the same component.
    scale = 10.0 ** (6.0 - spread * torch.rand(pattern.count)) if spread else None
    info, precision = random_potentials(pattern, scale=scale)
    exact_value, exact_mean, covariance = exact(info, full_matrix(pattern, precision))
    deviation = covariance.diagonal().sqrt()
    value = system.log_integral(info.requires_grad_(), precision.requires_grad_())
    assert torch.equal(value, system.log_integral(info.detach(), precision.detach()))
    assert value.shape == (system.count,)
    assert system.components.shape == (pattern.count,)
    assert abs(value.sum() - exact_value) < EXACT * (value.abs().sum() + pattern.count)
    mean, pairs = system.moments(info, precision)
    assert float(((mean - exact_mean) / deviation).abs().max()) < EXACT
    units = deviation[pattern.rows] * deviation[pattern.columns]
    exact_pairs = covariance[pattern.rows, pattern.columns]
    assert float(((pairs - exact_pairs) / units).abs().max()) < EXACT
    by_info, by_precision = torch.autograd.grad(value.sum(), [info, precision])
    assert torch.equal(by_info, mean)
    second = exact_pairs + exact_mean[pattern.rows] * exact_mean[pattern.columns]
    halves = torch.where(pattern.rows == pattern.columns, 0.5, 1.0)
    error = (by_precision + halves * second) / units
    assert float(error.abs().max()) < EXACT * (1.0 + (exact_mean / deviation).square().max())


@cases
def test_each_component_has_its_own_value(name: str) -> None:
    system = SYSTEMS[name]()
    info, precision = random_potentials(system.pattern)
    value = system.log_integral(info, precision)
    matrix = full_matrix(system.pattern, precision)
    for number in range(system.count):
        own = (system.components == number).nonzero().squeeze(-1)
        expected = dense_log_integral(info[own], matrix[own][:, own])
        torch.testing.assert_close(value[number], expected, rtol=1e-11, atol=1e-11)


@cases
@pytest.mark.parametrize(("infos", "precisions"), [((3,), (3,)), ((2, 3), ()), ((), (3,))])
def test_leading_dims(name: str, infos: tuple[int, ...], precisions: tuple[int, ...]) -> None:
    system = SYSTEMS[name]()
    info, precision = random_potentials(system.pattern, (2, 3))
    info = info[(0,) * (2 - len(infos))].clone().requires_grad_()
    precision = precision[(0,) * (2 - len(precisions))].clone().requires_grad_()
    batch = torch.broadcast_shapes(infos, precisions)
    value = system.log_integral(info, precision)
    assert value.shape == (*batch, system.count)
    weights = torch.randn_like(value)
    gradients = torch.autograd.grad(value, [info, precision], weights)
    mean, covariance = system.moments(info, precision)
    noise = torch.randn(*batch, system.pattern.count)
    draws = system.sample(info, precision, noise)
    infos_, precisions_ = (x.expand(*batch, -1).reshape(-1, x.shape[-1]) for x in (info, precision))
    flat = weights.reshape(-1, system.count)
    total = torch.zeros(())
    for row, (h, p) in enumerate(zip(infos_, precisions_, strict=True)):
        one = system.log_integral(h, p)
        torch.testing.assert_close(value.reshape(-1, system.count)[row], one)
        total = total + (one * flat[row]).sum()
        alone = system.moments(h, p)
        torch.testing.assert_close(mean.reshape(-1, len(h))[row], alone[0])
        pairs = covariance.expand(*batch, -1).reshape(-1, len(p))[row]
        torch.testing.assert_close(pairs, alone[1])
        one_draw = system.sample(h, p, noise.reshape(-1, len(h))[row])
        torch.testing.assert_close(draws.reshape(-1, len(h))[row], one_draw)
    for ours, theirs in zip(gradients, torch.autograd.grad(total, [info, precision]), strict=True):
        torch.testing.assert_close(ours, theirs)


@cases
def test_second_derivatives_of_systems(name: str) -> None:
    system = SYSTEMS[name]()
    pattern = system.pattern
    info, precision = random_potentials(pattern)
    given = info.requires_grad_(), precision.requires_grad_()

    def definition(info: Tensor, values: Tensor) -> Tensor:
        return dense_log_integral(info, full_matrix(pattern, values))

    def ours(info: Tensor, values: Tensor) -> Tensor:
        return system.log_integral(info, values).sum()

    found, expected = (
        torch.autograd.functional.hessian(function, given) for function in (ours, definition)
    )
    for i in range(2):
        for j in range(2):
            torch.testing.assert_close(found[i][j], expected[i][j], rtol=1e-9, atol=1e-9)
    for i in range(2):  # where the other does not require a gradient
        given_alone = [each.detach().requires_grad_(i == j) for j, each in enumerate(given)]
        (first,) = torch.autograd.grad(ours(*given_alone), given_alone[i], create_graph=True)
        direction = torch.randn_like(first)
        (second,) = torch.autograd.grad((first * direction).sum(), given_alone[i])
        torch.testing.assert_close(second, expected[i][i] @ direction, rtol=1e-9, atol=1e-9)


@cases
def test_draws_have_the_posterior_mean_and_covariance(name: str) -> None:
    system = SYSTEMS[name]()
    count = system.pattern.count
    info, precision = random_potentials(system.pattern)
    mean, _ = system.moments(info, precision)
    # Draws are affine in the noise: their covariance is that of the columns.
    noises = torch.cat([torch.zeros(1, count), torch.eye(count)])
    draws = system.sample(info, precision, noises)
    torch.testing.assert_close(draws[0], mean, rtol=1e-12, atol=1e-12)
    columns = draws[1:] - draws[0]
    covariance = torch.linalg.inv(full_matrix(system.pattern, precision))
    torch.testing.assert_close(columns.T @ columns, covariance, rtol=1e-11, atol=1e-12)


@cases
def test_covariances_of_any_pairs(name: str) -> None:
    system = SYSTEMS[name]()
    info, precision = random_potentials(system.pattern)
    rows = torch.arange(system.pattern.count).repeat_interleave(system.pattern.count)
    columns = torch.arange(system.pattern.count).repeat(system.pattern.count)
    found = system.pairs(info, precision, rows, columns)
    covariance = torch.linalg.inv(full_matrix(system.pattern, precision))
    torch.testing.assert_close(found, covariance.reshape(-1), rtol=1e-11, atol=1e-12)
    pattern = system.pattern
    found = system.pairs(info, precision, pattern.rows, pattern.columns)
    torch.testing.assert_close(found, system.moments(info, precision)[1])


@cases
def test_what_is_not_positive_definite_gives_nan(name: str) -> None:
    system = SYSTEMS[name]()
    info, precision = random_potentials(system.pattern)
    places = system.pattern.place(*2 * (torch.arange(system.pattern.count),))
    for bad in (-1.0, 0.0, torch.nan):
        for entry in (0, system.pattern.count - 1):
            precision_ = precision.clone()
            precision_[places[entry]] = bad
            value = system.log_integral(info, precision_.requires_grad_())
            assert value[system.components[entry]].isnan()
            (gradient,) = torch.autograd.grad(value.sum(), precision_)
            assert gradient[places[entry]].isnan()


@cases
def test_systems_pickle(name: str) -> None:
    system = SYSTEMS[name]()
    info, precision = random_potentials(system.pattern)
    again = pickle.loads(pickle.dumps(system))
    assert again.description == system.description
    expected = system.log_integral(info, precision)
    assert torch.equal(again.log_integral(info, precision), expected)


@cases
def test_work_is_done_where_the_potentials_are(name: str) -> None:
    system = SYSTEMS[name]()
    info, precision = random_potentials(system.pattern)
    given = info.requires_grad_(), precision.requires_grad_()
    noise = torch.randn(system.pattern.count)

    def everything() -> list[Tensor]:
        value = system.log_integral(*given).sum()
        first = torch.autograd.grad(value, given, create_graph=True)
        second = torch.autograd.grad(first[0].sum(), given)
        return [value, *first, *second, *system.moments(*given), system.sample(*given, noise)]

    here = everything()
    torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        there = everything()
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))


# -- the choice of an algorithm ---------------------------------------------------------------


def every_pair(count: int) -> Pattern:
    rows, columns = torch.tril_indices(count, count)
    return Pattern.of(count, rows, columns)


def ring(count: int) -> Pattern:
    every = torch.arange(count)
    return Pattern.of(count, every, every.roll(1))


CHOICES = {
    "5,000 blocks of 2 entries": lambda: blocks_of([2] * 5000),
    "3 blocks of 1 to 64 entries": lambda: blocks_of([64, 1, 7], whole=False),
    "4 blocks of 80 entries": lambda: blocks_of([80] * 4),
    "a chain of 5,000 steps of 3 entries": lambda: state_space(5000, states=3),
    "a chain of 2,001 steps of up to 2 entries": lambda: ring(4000),
    "2,000 entries eliminated, 60 dense": lambda: crossed((2000, 60), 1, 30_000),
    "1,000 entries eliminated, 40 dense": lambda: crossed((500, 20), 2, 8_000),
    "a dense matrix of 300 entries": lambda: every_pair(300),
}


@pytest.mark.parametrize("description", CHOICES)
def test_the_pattern_decides_on_the_algorithm(description: str) -> None:
    pattern = CHOICES[description]()
    system = gaussian_system(pattern)
    assert system.description == description
    info, precision = random_potentials(pattern)
    value = system.log_integral(info, precision)
    assert value.shape == (system.count,)
    order = pickle.loads(pickle.dumps(system)).components
    assert torch.equal(order, system.components)


@pytest.mark.parametrize(
    "pattern",
    [pedigree(1500), state_space(700, 3, 90, states=2), crossed((400, 60), 2, 3000),
     crossed((500, 400), 1, 900)],
    ids=["pedigree", "chains", "slopes", "crossed"],
)  # fmt: skip
def test_large_systems_equal_dense_arithmetic(pattern: Pattern) -> None:
    system = gaussian_system(pattern)
    assert not isinstance(system, DenseSystem)
    info, precision = random_potentials(pattern)
    matrix = full_matrix(pattern, precision)
    value = system.log_integral(info.requires_grad_(), precision.requires_grad_()).sum()
    expected = dense_log_integral(info, matrix).detach()
    assert abs(value - expected) < 1e-12 * abs(expected)
    covariance = torch.linalg.inv(matrix).detach()
    by_info, by_precision = torch.autograd.grad(value, [info, precision])
    mean = covariance @ info.detach()
    torch.testing.assert_close(by_info, mean, rtol=0, atol=1e-12 * float(mean.abs().max()))
    rows, columns = pattern.rows, pattern.columns
    halves = torch.where(rows == columns, 0.5, 1.0)
    second = -halves * (covariance[rows, columns] + mean[rows] * mean[columns])
    tolerance = 1e-12 * float(second.abs().max())
    torch.testing.assert_close(by_precision, second, rtol=0, atol=tolerance)


def test_pairs_that_no_factor_reads_are_refused_beyond_a_size() -> None:
    pattern = state_space(5001, states=1)
    system = gaussian_system(pattern)
    info, precision = random_potentials(pattern)
    near = system.pairs(info, precision, torch.tensor([7]), torch.tensor([8]))
    assert near.shape == (1,)
    with pytest.raises(ValueError, match="ask for pairs that a factor reads together"):
        system.pairs(info, precision, torch.tensor([7]), torch.tensor([9]))
