"""Statistics and plans go through pickle, to other processes and back, without losing a bit."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.constraints as constraints
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.families.superposition import SuperposedForm
from ember.inference.parameters.parameter import Parameter
from ember.inference.plan.statistics import Statistics
from ember.inference.reading.traced_operator import TracedOperator
from ember.models import (
    emission_tomography,
    gaussian_mixture,
    hidden_markov_gaussian,
    poisson_mixture,
    regression_mixture,
)
from tests.inference.catalogue import CASES, NUMERICAL, Case, case_id, model_of

Params = dict[str, Tensor]


def assert_same(one: Params, other: Params) -> None:
    """Equality to the last bit."""
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def there_and_back(statistics: Statistics) -> Statistics:
    travelled = pickle.loads(pickle.dumps(statistics))
    assert isinstance(travelled, Statistics)
    return travelled


@pytest.mark.parametrize("case", CASES + NUMERICAL, ids=case_id)
def test_statistics_and_plans_are_the_same_afterwards(case: Case) -> None:
    em = EM(model_of(case), seed=0)
    plan = em.plan(case[1], **case[2])
    params = em.initialise(plan)
    statistics = em.e_step(params, plan)
    best = em.m_step(statistics)
    assert_same(em.m_step(there_and_back(statistics)), best)

    again = em.e_step(params, pickle.loads(pickle.dumps(plan)))
    assert again.objective == statistics.objective
    assert again.sums.keys() == statistics.sums.keys()
    assert all(torch.equal(again.sums[key][1], sums) for key, (_, sums) in statistics.sums.items())
    assert_same(em.m_step(again), best)


# -- pieces of data ---------------------------------------------------------------------------


def points(rows: int) -> Tensor:
    centres = torch.tensor([[0.0, 0.0], [5.0, 3.0]], dtype=torch.float64)
    noise = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return centres[torch.arange(rows) % 2] + noise


def counts(rows: int) -> Tensor:
    rates = torch.tensor([2.0, 9.0], dtype=torch.float64)[torch.arange(rows) % 2]
    return torch.poisson(rates, generator=torch.Generator().manual_seed(2))


def with_gaps(rows: int) -> Tensor:
    x = points(rows)
    x[::5, 0], x[1::7, 1] = torch.nan, torch.nan
    return x


def gaussian(rows: int, covariance: str) -> dict[str, Any]:
    return {"x": points(rows), "components": 2, "covariance": covariance}


def incomplete(rows: int) -> dict[str, Any]:
    return {"x": with_gaps(rows), "components": 2}


def regression(rows: int) -> dict[str, Any]:
    x = points(rows)
    y = torch.where(torch.arange(rows) % 2 == 0, 1.0 + 2.0 * x[:, 0], -1.0 - x[:, 1])
    return {"y": y + 0.1 * x.sum(1).sin(), "X": x, "components": 2}


def sequences(rows: int) -> dict[str, Any]:
    return {"x": points(10 * rows).reshape(rows, 10, 2), "states": 2}


def scan(rows: int) -> dict[str, Any]:
    system = torch.rand(rows, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {"counts": counts(rows), "system": system}


Made = tuple[Callable[..., Any], Callable[[int], dict[str, Any]]]
MODELS: dict[str, Made] = {
    "full": (gaussian_mixture, lambda rows: gaussian(rows, "full")),
    "tied": (gaussian_mixture, lambda rows: gaussian(rows, "tied")),
    "diag": (gaussian_mixture, lambda rows: gaussian(rows, "diag")),
    "spherical": (gaussian_mixture, lambda rows: gaussian(rows, "spherical")),
    "gaps": (gaussian_mixture, incomplete),
    "counts": (poisson_mixture, lambda rows: {"x": counts(rows), "components": 2}),
    "regression": (regression_mixture, regression),
    "chain": (hidden_markov_gaussian, sequences),
    "scan": (emission_tomography, scan),
}
BY_ROW = ("x", "y", "X", "counts", "system")


def pieces(data: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """The data in pieces of some rows each; options are those of all of them."""
    split = {name: value.split(size) for name, value in data.items() if name in BY_ROW}
    number = len(next(iter(split.values())))
    return [{**data, **{n: parts[i] for n, parts in split.items()}} for i in range(number)]


@pytest.mark.parametrize("name", MODELS)
def test_pieces_that_have_travelled_add_up(name: str) -> None:
    model, make = MODELS[name]
    data, em = make(40), EM(model, "mle", seed=0)
    params = em.initialise(**data)
    whole = em.e_step(params, **data)
    total = sum(there_and_back(em.e_step(params, **piece)) for piece in pieces(data, 25))
    assert isinstance(total, Statistics)
    assert total.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
    best = em.m_step(whole)
    for site, value in em.m_step(there_and_back(total)).items():
        torch.testing.assert_close(value, best[site], rtol=1e-9, atol=1e-9)


WORKER = """
import pickle, sys
from ember.inference import EM
model, params, pieces = pickle.load(sys.stdin.buffer)
em = EM(model, "mle", seed=0)
pickle.dump([em.e_step(params, **piece) for piece in pieces], sys.stdout.buffer)
"""


def test_pieces_of_two_processes_add_up() -> None:
    model, make = MODELS["full"]
    data, em = make(40), EM(model, "mle", seed=0)
    params = em.initialise(**data)
    total: Any = 0
    for piece in pieces(data, 20):
        worker = subprocess.run(
            [sys.executable, "-c", WORKER],
            input=pickle.dumps((model, params, [piece])),
            capture_output=True,
            check=True,
        )
        (statistics,) = pickle.loads(worker.stdout)
        assert_same(em.m_step(statistics), em.m_step(em.e_step(params, **piece)))
        total = total + statistics
    best = em.m_step(em.e_step(params, **data))
    for site, value in em.m_step(total).items():
        torch.testing.assert_close(value, best[site], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", ["map", "mle"])
@pytest.mark.parametrize("name", MODELS)
def test_statistics_do_not_grow_with_the_data(name: str, objective: str) -> None:
    model, make = MODELS[name]
    em = EM(model, objective, seed=0)
    params = em.initialise(**make(40))
    few, many = (len(pickle.dumps(em.e_step(params, **make(rows)))) for rows in (40, 400))
    assert many <= few


# -- what pickle alone would not do -------------------------------------------------------------


@pytest.mark.parametrize(
    "support",
    [
        constraints.real,
        constraints.positive,
        constraints.simplex,
        constraints.positive_definite,
        constraints.softplus_positive,
        constraints.real_vector,
    ],
    ids=str,
)
def test_supports_come_back_as_themselves(support: constraints.Constraint) -> None:
    def travelled(support: constraints.Constraint) -> constraints.Constraint:
        parameter = Parameter("p", support, torch.Size(), (), True, torch.zeros(()))
        again: Parameter = pickle.loads(pickle.dumps(parameter))
        return again.support

    assert travelled(support) is support
    nested = travelled(constraints.independent(support, 1))
    assert isinstance(nested, constraints.independent)
    assert nested.base_constraint is support
    assert nested.reinterpreted_batch_ndims == 1
    bounded: Any = travelled(constraints.interval(-1.0, torch.tensor([2.0, 3.0])))
    assert torch.equal(bounded.upper_bound, torch.tensor([2.0, 3.0]))


def blurred(counts: Tensor) -> None:
    kernel = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    image = pyro.param("image", torch.full((50,), 2.0), constraint=constraints.positive)
    rate = torch.nn.functional.conv1d(image[None, None], kernel[None, None], padding=1)
    with pyro.plate("rays", 50):
        pyro.sample("counts", dist.Poisson(rate.reshape(-1) + 0.3), obs=counts)


def test_a_map_that_only_the_model_knows_is_recorded_again() -> None:
    em = EM(blurred, "mle", seed=0)
    plan = em.plan(counts(50))
    form = plan.sites["counts"].form
    assert isinstance(form, SuperposedForm)
    assert isinstance(form.map.operator, TracedOperator)
    params = em.initialise(plan)
    again = em.e_step(params, pickle.loads(pickle.dumps(plan)))
    assert_same(em.m_step(again), em.m_step(em.e_step(params, plan)))


def test_statistics_need_no_model_that_pickle_can_find() -> None:
    def local(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, precision.rsqrt()), obs=x)

    em = EM(local, seed=0)
    statistics = em.e_step(em.initialise(counts(20)), counts(20))
    assert_same(em.m_step(there_and_back(statistics)), em.m_step(statistics))
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(em.plan(counts(20)))
