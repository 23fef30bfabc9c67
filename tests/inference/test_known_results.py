"""What a model computes of its data alone: once for all runs that read it, and nowhere else."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.reading import modes
from ember.inference.reading.known_results import KnownResults, Result, same_value
from ember.models import gaussian_mixture, regression_mixture, student_t_mixture
from ember.models.parts import orthonormal_design
from ember.models.parts.of_data import of_data

RNG = np.random.default_rng(0)
X = torch.from_numpy(RNG.normal(size=(60, 2)) + 3.0 * RNG.integers(2, size=(60, 1)))
Y = X[:, 0] - 2.0 * X[:, 1]


def plan_of(model: Callable[..., None], *args: Tensor, **options: object) -> Plan:
    with sheltered(0):
        return build_plan(model, prepare(args, options))


def without_memory() -> AbstractContextManager[object]:
    """Every run computes everything."""

    class Forgetful(KnownResults):
        def __init__(self, results: list[Result]) -> None:
            super().__init__([])

    return mock.patch.object(modes, "KnownResults", Forgetful)


def test_a_design_is_made_orthonormal_once_for_all_runs() -> None:
    triangle = mock.Mock(side_effect=orthonormal_design._triangle)
    with mock.patch.object(orthonormal_design, "_triangle", triangle):
        plan = plan_of(regression_mixture, Y, X, components=2)
        alone = triangle.call_count
        with without_memory():
            plan_of(regression_mixture, Y, X, components=2)
    assert alone <= 4  # those of the first run, and of the same on few rows
    assert triangle.call_count - alone > 10 * alone
    assert plan.structure.remembered.results is None  # as large as the data: let go of


@pytest.mark.parametrize(
    ("model", "args", "options"),
    [
        (regression_mixture, (Y, X), {"components": 2}),
        (regression_mixture, (Y, X[:, :1]), {"components": 2, "scale": "tied"}),
        (gaussian_mixture, (X,), {"components": 2, "covariance": "diag"}),
        (gaussian_mixture, (X,), {"components": 3}),
        (student_t_mixture, (X,), {"components": 2}),
    ],
)
def test_fits_are_the_same_to_the_bit(
    model: Callable[..., None], args: tuple[Tensor, ...], options: dict[str, object]
) -> None:
    em = EM(model, seed=0, max_iter=4)
    fits = []
    for how in (mock.patch.object(modes, "KnownResults", KnownResults), without_memory()):
        with how, pytest.warns(RuntimeWarning):
            fits.append(em.fit(*args, **options))
    for name, value in fits[0].params.items():
        assert torch.equal(value, fits[1].params[name])


def test_gaps_are_the_same_gaps() -> None:
    x = X.clone()
    x[3, 1] = torch.nan
    assert same_value(x, x.clone())
    assert not same_value(x, X)
    square = X[:2]
    assert not same_value(square, square.mT)  # one memory, read in another order
    scale = mock.Mock(side_effect=torch.linalg.eigvalsh)
    with mock.patch.object(torch.linalg, "eigvalsh", scale):
        plan_of(gaussian_mixture, x, components=2)
    assert scale.call_count <= 2


def test_yes_and_no_are_results_too() -> None:
    results: list[Result] = []
    columns = torch.ones(60, 1, dtype=torch.float64), torch.ones(50, 1, dtype=torch.float64)
    for _ in range(2):
        with KnownResults(results):
            assert all(orthonormal_design.has_level(x, x[:, 0]) for x in columns)
    assert [result.value for result in results] == [True, True]


calls: list[Tensor] = []


@of_data
def doubled(x: Tensor, by: float = 2.0) -> Tensor:
    """A function of the data, which notes its calls."""
    calls.append(x)
    return by * x


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def run(results: list[Result], *args: Tensor, by: float = 2.0) -> list[Tensor]:
    with KnownResults(results):
        return [doubled(x, by=by) for x in args]


def test_within_a_run_nothing_is_left_out() -> None:
    results: list[Result] = []
    first = run(results, X, X)
    assert len(calls) == 2
    assert all(map(torch.equal, run(results, X.clone(), X), first))
    assert len(calls) == 2


def test_other_numbers_are_computed_anew() -> None:
    results: list[Result] = []
    run(results, X)
    changed = X.clone()
    changed[-1, -1] += 1e-12
    (found,) = run(results, changed)
    assert torch.equal(found, 2.0 * changed)
    assert torch.equal(run(results, X, by=3.0)[0], 3.0 * X)
    assert torch.equal(run(results, X.float())[0], 2.0 * X.float())
    assert torch.equal(run(results, X[:-1])[0], 2.0 * X[:-1])
    assert len(calls) == 5
    run(results, X, changed, X.float(), X[:-1])
    assert len(calls) == 5


def test_what_depends_on_parameters_is_not_kept() -> None:
    leaf = X.clone().requires_grad_()
    results: list[Result] = []
    for _ in range(2):
        (found,) = run(results, leaf)
        assert found.requires_grad
    assert len(calls) == 2
    assert not results


def test_a_model_of_ones_own_may_use_it() -> None:
    def model(x: Tensor) -> None:
        scale = doubled(x.std(0))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), scale).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(locs, scale).to_event(1), obs=x)

    fit = EM(model, seed=0).fit(X)
    scale = 2.0 * X.std(0)
    shrunk = X.sum(0) / (len(X) + 1.0)  # the prior is worth one row
    torch.testing.assert_close(fit.params["locs"], shrunk, rtol=1e-8, atol=0.0)
    assert bool((scale > 0).all())
    assert len(calls) < 6  # the first run, and those after the reading
