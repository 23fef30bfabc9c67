"""What is read from a model is never older than the model and its data."""

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from pyro.nn import PyroModule
from torch import Tensor

from ember.inference import EM

ROWS = [[0.1, 1.0], [0.9, 2.0], [2.2, 3.0], [2.9, 4.0], [4.1, 5.5]]
SCALE = torch.ones(5)


def line(rows: Any, weights: Any = None) -> None:
    """A straight line through the second column; where the slope is zero the first is unseen."""
    if isinstance(rows, dict):
        rows = rows["data"][0]
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", 5):
        pyro.sample("y", dist.Normal(slope * rows[:, 0], SCALE), obs=rows[:, 1])


def product(matrix: Any) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    column = (matrix @ torch.tensor([1.0, 0.0]))[:, None].squeeze(-1)
    with pyro.plate("rows", 5):
        pyro.sample("y", dist.Normal(slope * column, 1.0), obs=torch.arange(5.0))


def set_first(data: Any) -> None:
    data[0][0] = 7.0


def set_frame(data: pd.DataFrame) -> None:
    data.iloc[0, 0] = 7.0


def set_sparse(data: Any) -> None:
    data.data[0] = 7.0


CASES: dict[str, tuple[Any, Any, Callable[[Any], None]]] = {
    "tensor": (line, torch.tensor(ROWS), set_first),
    "double": (line, torch.tensor(ROWS, dtype=torch.float64), set_first),
    "array": (line, np.array(ROWS), set_first),
    "list": (line, [list(row) for row in ROWS], set_first),
    "frame": (line, pd.DataFrame(ROWS), set_frame),
    "nested": (line, {"data": [np.array(ROWS)]}, lambda data: set_first(data["data"][0])),
    "sparse": (product, scipy.sparse.csr_matrix(ROWS), set_sparse),
}


@pytest.mark.parametrize("case", CASES)
def test_data_changed_in_place_are_read_anew(case: str) -> None:
    model, data, change = CASES[case]
    em, at = EM(model, "mle"), {"slope": 1.5}
    fit, before = em.fit(data), em.e_step(at, data).log_likelihood
    assert em.e_step(at, data).log_likelihood == pytest.approx(before)
    change(data)
    fresh = EM(model, "mle")
    assert fresh.fit(data).log_likelihood != pytest.approx(fit.log_likelihood, rel=1e-3)
    after = fresh.e_step(at, data).log_likelihood
    assert after != pytest.approx(before, rel=1e-3)
    assert em.e_step(at, data).log_likelihood == pytest.approx(after)
    assert em.fit(data).log_likelihood == pytest.approx(fresh.fit(data).log_likelihood)


@pytest.mark.parametrize("case", ["double", "array", "frame"])
def test_a_fit_keeps_the_data_that_it_was_made_from(case: str) -> None:
    model, data, change = CASES[case]
    fit = EM(model).fit(data)
    before = fit.log_prob()
    change(data)
    torch.testing.assert_close(fit.log_prob(), before)
    torch.testing.assert_close(fit.log_prob(weights=1.0), before)


class Line(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x", torch.tensor(ROWS)[:, 0].clone())

    def forward(self, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", 5):
            pyro.sample("y", dist.Normal(slope * self.x, 1.0), obs=y)


def test_data_that_are_no_argument_are_read_anew() -> None:
    """In closures, partial functions and modules, at once invisible where the slope is zero."""
    held, x, module = torch.tensor(ROWS), torch.tensor(ROWS), Line()
    models: list[Any] = [
        lambda: line(held),
        functools.partial(line, x),
        functools.partial(module, x[:, 1]),
    ]
    for model, data in zip(models, (held[:, 0], x[:, 0], module.x), strict=True):
        em = EM(model, "mle")
        em.fit()
        before = em.e_step({"slope": 1.0}).log_likelihood
        data[0] = 7.0
        assert em.e_step({"slope": 1.0}).log_likelihood != pytest.approx(before, rel=1e-3)
        expected = float(data.double() @ x[:, 1].double() / data.double().square().sum())
        assert float(em.fit().params["slope"]) == pytest.approx(expected)


def test_options_set_after_a_fit_count() -> None:
    x = torch.tensor(ROWS)
    em = EM(line)
    prior = em.fit(x).log_posterior - em.fit(x).log_likelihood
    em.objective = "mle"
    fit = em.fit(x)
    assert fit.log_posterior == fit.log_likelihood
    assert prior < -1.0
    assert em.e_step({"slope": 1.0}, x).log_prior == 0.0
    before = em.e_step({"slope": 1.0}, x).log_likelihood
    em.model = lambda x: line(2.0 * x)
    assert em.e_step({"slope": 1.0}, x).log_likelihood != pytest.approx(before, rel=1e-3)
    em.objective = "mpa"
    with pytest.raises(ValueError, match="objective='mpa' is unknown"):
        em.fit(x)


def test_a_plan_stands_for_its_arguments() -> None:
    x = torch.tensor(ROWS)
    em = EM(line)
    plan = em.plan(x)
    params = em.initialise(plan)
    assert float(params["slope"]) == pytest.approx(float(em.initialise(x)["slope"]))
    assert em.e_step(params, plan).objective == pytest.approx(em.e_step(params, x).objective)
    with pytest.raises(ValueError, match="another model or objective"):
        EM(line, "mle").e_step(params, plan)


def test_steps_by_hand_read_a_model_once() -> None:
    runs = 0

    def counted(x: Tensor) -> None:
        nonlocal runs
        runs += 1
        pyro.param("unused", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        line(x)

    x, em = torch.tensor(ROWS), EM(counted)
    stats = em.e_step({"slope": 1.0, "unused": 0.5}, x)
    before = runs
    again = em.e_step(em.m_step(stats), x)
    assert again.m_step is stats.m_step  # that of the same plan
    assert runs == before + 1


def test_a_plan_goes_with_its_fit() -> None:
    # Not when the garbage collector comes by: the rows of large data would pile up.
    gc.collect()
    gc.disable()
    try:
        fit = EM(line, seed=0).fit(torch.tensor(ROWS))
        plan = weakref.ref(fit.plan)
        del fit
        assert plan() is None
    finally:
        gc.enable()
