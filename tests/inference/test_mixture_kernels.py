"""The sweep over a mixture's rows, in torch and compiled, against the elimination of the latent."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.kernels import compiled_sweep as by_threads
from ember.inference.expectation.kernels import mixture, sweep
from ember.inference.expectation.kernels.compiled_sweep import compiled_sweep, is_worth_compiled
from ember.inference.expectation.kernels.mixture import MixtureKernel
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.columns import Columns, ScalarColumns, VectorColumns
from ember.inference.factors.exponential import ExponentialFactor, statistics_of
from ember.inference.factors.residuals.choice import ResidualFactors
from ember.inference.factors.tied import TieKey
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.m_step import MStep
from ember.inference.numerics.compiled import use_compiled
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.numerics.threads import bounds_of, in_threads, one_thread
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import natural_parameters, values_of
from ember.inference.reading.matching.arguments import probe_values
from ember.models import gaussian_mixture

COVARIANCES = ("full", "tied", "diag", "spherical")
SHAPES = [  # rows, columns, components
    *[(2, 1, 2), (3, 2, 2), (40, 1, 3), (255, 3, 4), (256, 2, 5), (257, 4, 6)],
    *[(600, 7, 7), (1030, 8, 8), (300, 12, 9), (90, 33, 3)],
]
compiled_alone = pytest.mark.skipif(not use_compiled(), reason="numba is not installed")


@pytest.fixture(params=["torch", pytest.param("compiled", marks=compiled_alone)])
def by(request: pytest.FixtureRequest) -> Iterator[str]:
    """The way that all sweeps of a test go, however many rows there are."""
    is_compiled = request.param == "compiled"
    with mock.patch.object(mixture, "is_worth_compiled", return_value=is_compiled):
        yield request.param


def data(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return x + 3.0 * (torch.arange(rows) % 2).unsqueeze(1)


def plan_of(x: Tensor, model: Callable[..., None] = gaussian_mixture, **options: Any) -> Plan:
    with sheltered(0):
        return build_plan(model, prepare((x,), options))


def kernel_of(plan: Plan) -> MixtureKernel:
    kernel = LogEvidence.of(plan).kernel
    assert kernel is not None
    return kernel


def natural_at(plan: Plan, seed: int) -> dict[TieKey, Tensor]:
    return natural_parameters(plan, values_of(plan, probe_values(plan.structure, seed)))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    size = expected.abs().max().nan_to_num(1.0, 1.0)
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=float(tolerance * size), equal_nan=True
    )


def check_against_elimination(plan: Plan, seed: int = 3) -> None:
    natural = natural_at(plan, seed)
    total, gradients = kernel_of(plan)(natural)
    expected, by_tie, _ = LogEvidence.of(plan).gradients(natural, {})
    assert total == pytest.approx(float(expected), rel=1e-9)
    for key, gradient in by_tie.items():
        close(gradients[key], gradient)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_sweep_is_the_elimination(covariance: str, shape: tuple[int, int, int], by: str) -> None:
    rows, columns, components = shape
    frequency = torch.arange(rows) % 4 + 1 if components % 2 else None
    plan = plan_of(
        data(rows, columns), components=components, covariance=covariance, frequency=frequency
    )
    check_against_elimination(plan)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_of_the_rows_the_data_alone_are_held(covariance: str) -> None:
    x = data(50, 3)
    plan = plan_of(x, components=2, covariance=covariance)
    (held,) = kernel_of(plan).rows.columns
    assert held.data.shape == (3, 50)
    _, factor = plan.compiled["x"]
    assert isinstance(factor, ExponentialFactor)
    site = plan.sites["x"]
    statistics, _ = statistics_of(site, site.value, x.mean(0))
    expected = statistics.reshape(50, -1).T
    torch.testing.assert_close(factor.columns.matrix, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("kind", [Columns, ScalarColumns, VectorColumns])
def test_features_are_products_of_the_rows_they_name(kind: type[Columns]) -> None:
    columns = kind(data(6, 4).T.contiguous())
    out = torch.empty(columns.features, 4, dtype=torch.float64)
    columns.form(1, 5, out)
    held = columns.data[:, 1:5]
    first, second = (held[rows] for rows in columns.factors)
    expected = first * torch.where(columns.factors[1, :, None] < 0, 1.0, second)
    torch.testing.assert_close(out, expected, rtol=0.0, atol=0.0)
    eta = data(columns.matrix.shape[0], 3).T
    constant, left = columns.parted(eta)
    joint = left @ out if constant is None else constant.unsqueeze(1) + left @ out
    close(joint, eta @ columns.matrix[:, 1:5], 1e-14)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_several_starts_at_once_are_each_by_itself(covariance: str, by: str) -> None:
    plan = plan_of(data(700, 4), components=3, covariance=covariance)
    each = [natural_at(plan, seed) for seed in range(5)]
    total, gradients = kernel_of(plan).batched(
        {k: torch.stack([n[k] for n in each]) for k in each[0]}
    )
    for i, natural in enumerate(each):
        alone, own = kernel_of(plan)(natural)
        assert float(total[i]) == pytest.approx(alone, rel=1e-12)
        for key, gradient in own.items():
            close(gradients[key][i], gradient, 1e-11)


def two_emissions(x: Tensor, frequency: Tensor | None = None) -> None:
    """A vector, a count and an answer for each row."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        precisions = pyro.sample("precisions", dist.Wishart(4.0, torch.eye(2)))
        rates = pyro.sample("rates", dist.Gamma(2.0, 1.0))
        scales = pyro.sample("scales", dist.HalfNormal(torch.ones(2)).to_event(1))
    scale = torch.ones(()) if frequency is None else frequency
    with pyro.plate("rows", len(x)), pyro.poutine.scale(scale=scale):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], precision_matrix=precisions[z]), obs=x)
        pyro.sample("y", dist.Normal(locs[z], scales[z]).to_event(1), obs=x.flip(1))
        pyro.sample("n", dist.Poisson(rates[z]), obs=x[:, 0].abs().round())


@pytest.mark.parametrize("weighed", [False, True])
def test_several_sites_of_one_row(weighed: bool, by: str) -> None:
    x = data(330, 2)
    plan = plan_of(x, two_emissions, frequency=1.0 + torch.arange(330) % 3 if weighed else None)
    rows = kernel_of(plan).rows
    assert [type(each) for each in rows.columns] == [VectorColumns, ScalarColumns, Columns]
    assert (rows.base is not None, rows.weights is not None) == (True, weighed)
    check_against_elimination(plan)


def answers(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        yes = pyro.sample("yes", dist.Beta(torch.ones(3), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(yes[z]).to_event(1), obs=x)


@pytest.mark.parametrize("impossible", [1, 2])
def test_rows_that_some_or_all_components_rule_out(impossible: int, by: str) -> None:
    x = (data(300, 3) > 1.5).double()
    plan = plan_of(x, answers)
    params = probe_values(plan.structure, 3)
    params["yes"][:impossible, 0] = 0.0
    natural = natural_parameters(plan, values_of(plan, params))
    total, gradients = kernel_of(plan)(natural)
    expected, by_tie, _ = LogEvidence.of(plan).gradients(natural, {})
    assert total == pytest.approx(float(expected), rel=1e-9)
    assert (total < 0.1 * IMPOSSIBLE) == (impossible == 2)
    if impossible == 1:  # where nothing is possible, weights are no one's
        for key, gradient in by_tie.items():
            close(gradients[key], gradient)


def swept(
    x: Tensor, starts: int = 2, components: int = 5, weights: Tensor | None = None
) -> tuple[sweep.Rows, Tensor, Tensor]:
    """What a sweep takes, for normal vectors in the columns of ``x``."""
    rows = sweep.Rows((VectorColumns(x),), None, weights)
    generator = torch.Generator().manual_seed(1)
    size = (starts, components, rows.features)
    left = 0.3 * torch.randn(size, generator=generator, dtype=torch.float64)
    return rows, left, torch.randn(size[:2], generator=generator, dtype=torch.float64)


Way = Callable[..., sweep.Swept]
WAYS = [sweep.sweep, pytest.param(compiled_sweep, marks=compiled_alone)]
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_not_passed_over(way: Way, wrong: float) -> None:
    x = data(500, 3).T.contiguous()
    x[1, 400] = wrong
    rows, left, constant = swept(x)
    total, sums, counts = way(rows, left, constant)
    assert not bool(total.isfinite().any())
    assert bool(sums.isnan().any((1, 2)).all())
    assert bool(counts.isnan().any(1).all())
    rows, left, constant = swept(data(500, 3).T.contiguous())
    left[1, 2, 0] = wrong
    total, _, _ = way(rows, left, constant)
    assert total.isfinite().tolist() == [True, False]


@each_way
def test_a_component_without_weight(way: Way) -> None:
    rows, left, constant = swept(data(500, 3).T.contiguous())
    constant[:, [0, 3]] = -torch.inf
    kept = [1, 2, 4]
    expected = sweep.sweep(rows, left[:, kept], constant[:, kept])
    total, sums, counts = way(rows, left, constant)
    assert not bool(counts[:, [0, 3]].any())
    assert not bool(sums[:, [0, 3]].any())
    for found, wanted in zip((total, sums[:, kept], counts[:, kept]), expected, strict=True):
        close(found, wanted, 1e-12)
    constant[:] = -torch.inf
    assert bool(way(rows, left, constant)[0].isnan().all())


@each_way
@pytest.mark.parametrize("components", [1, 2, 3, 4, 5])
def test_one_component_to_several(way: Way, components: int) -> None:
    rows, left, constant = swept(data(30, 2).T.contiguous(), components=components)
    features = torch.empty(rows.features, 30, dtype=torch.float64)
    rows.form(0, 30, features)
    joint = constant.unsqueeze(2) + left @ features
    shares = joint.softmax(1)
    total, sums, counts = way(rows, left, constant)
    close(total, joint.logsumexp(1).sum(1), 1e-13)
    close(sums, shares @ features.T, 1e-13)
    close(counts, shares.sum(2), 1e-13)


@each_way
def test_one_row_and_rows_that_count_for_nothing(way: Way) -> None:
    x = data(300, 3).T.contiguous()
    weights = torch.zeros(300, dtype=torch.float64)
    weights[299] = 2.5
    total, sums, counts = way(*swept(x, weights=weights))
    one = way(*swept(x[:, 299:].contiguous()))
    for found, wanted in zip((total, sums, counts), one, strict=True):
        close(found, 2.5 * wanted, 1e-13)
    assert bool(torch.isclose(counts.sum(1), torch.tensor(2.5).double(), rtol=1e-14).all())


@pytest.mark.parametrize("size", [1, 30_000, 100_000_000])
def test_chunks_of_any_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = swept(data(2000, 4).T.contiguous(), weights=1.0 + torch.arange(2000.0).double() % 3)
    expected = sweep.sweep(*arguments)
    monkeypatch.setattr(sweep, "CHUNK_BYTES", size)
    again = swept(data(2000, 4).T.contiguous(), weights=arguments[0].weights)
    for found, wanted in zip(sweep.sweep(*again), expected, strict=True):
        close(found, wanted, 1e-12)


@each_way
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads(way: Way, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_threads, "ALONE", 1)
    monkeypatch.setattr(sweep, "ALONE", 1)
    weights = 1.0 + torch.arange(2000.0).double() % 3
    arguments = swept(data(2000, 4).T.contiguous(), weights=weights)
    alone = way(*arguments)
    torch.set_num_threads(count)
    first = way(*arguments)
    for found, again, wanted in zip(first, way(*arguments), alone, strict=True):
        assert torch.equal(found, again)  # whichever thread is done first
        close(found, wanted, 1e-12)
    assert torch.get_num_threads() == count


def test_torch_computes_alone_in_each_thread() -> None:
    def own(part: int) -> tuple[int, bool]:
        return torch.get_num_threads(), torch.is_grad_enabled()

    torch.set_num_threads(3)
    assert in_threads(own, range(6)) == [(1, False)] * 6
    torch.set_num_threads(2)
    assert in_threads(own, range(6)) == [(1, False)] * 6
    assert torch.get_num_threads() == 2
    with one_thread():  # which torch has for itself; the others are set aside for parts
        assert torch.get_num_threads() == 1
        assert in_threads(own, range(6)) == [(1, False)] * 6
        assert bounds_of(100, 10, 9) == [(0, 50), (50, 100)]
    assert torch.get_num_threads() == 2


@compiled_alone
def test_the_compiled_sweep_is_taken_where_there_is_work_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, left, _ = swept(data(1000, 4).T.contiguous())
    many = sweep.Rows((VectorColumns(data(50_000, 4).T.contiguous()),), None, None)
    assert not is_worth_compiled(few, left)
    assert is_worth_compiled(many, left)
    assert not is_worth_compiled(many, left.float())
    monkeypatch.setenv("EMBER_COMPILED", "0")
    assert not is_worth_compiled(many, left)


@compiled_alone
def test_without_compiled_kernels_a_fit_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = data(20_000, 4)
    em = EM(gaussian_mixture, seed=0, max_iter=5)
    fits = []
    for switch in ("1", "0"):
        monkeypatch.setenv("EMBER_COMPILED", switch)
        taken = mock.Mock(side_effect=compiled_sweep)
        with mock.patch.object(mixture, "compiled_sweep", taken), pytest.warns(RuntimeWarning):
            fits.append(em.fit(x, components=9))
        assert taken.called == (switch == "1")
    for name, value in fits[1].params.items():
        close(fits[0].params[name], value, 1e-8)
    assert fits[0].log_likelihood == pytest.approx(fits[1].log_likelihood, rel=1e-12)


def far_away() -> Tensor:
    return 1e6 + data(400, 2)


def almost_a_line() -> Tensor:
    x = data(400, 2)
    x[:, 1] = 0.999 * x[:, 0] + (1 - 0.999**2) ** 0.5 * x[:, 1]
    return x


def close_together() -> Tensor:
    x = 1e-5 * data(400, 2)
    x[::2] += 1.0
    return x


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize("scaled", [far_away, almost_a_line, close_together])
def test_badly_scaled_data_lose_no_digits(
    scaled: Callable[[], Tensor], covariance: str, by: str
) -> None:
    x = scaled()
    plan = plan_of(x, components=2, covariance=covariance)
    params = EM(gaussian_mixture, seed=0).initialise(x, components=2, covariance=covariance)
    evidence, m_step = LogEvidence.of(plan), MStep.of(plan)
    every = frozenset(key for key, tied in plan.tied.items() if tied.reach is not None)
    for _ in range(4):
        found = evidence.statistics(params)
        with mock.patch.object(ResidualFactors, "needed", return_value=every):
            residual = evidence.statistics(params)
        assert found.log_likelihood == pytest.approx(residual.log_likelihood, rel=1e-9)
        params, expected = m_step(found), m_step(residual)
        for name, value in expected.items():
            close(params[name], value, 1e-8)
