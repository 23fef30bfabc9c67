"""Starts: kmeans, random, given, callable; restarts; seeds; and what must stay untouched."""

import functools
import random
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from tests.inference.examples import EXAMPLES, mixture
from tests.inference.numerical_models import student_t


def clusters() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    cloud = torch.randn(60, generator=generator, dtype=torch.float64)
    return cloud + torch.tensor([-6.0, 0.0, 6.0], dtype=torch.float64).repeat(20)


def test_kmeans_starts_at_the_clusters() -> None:
    params = EM(mixture, seed=1).initialise(clusters())
    found = params["locs"].sort().values
    assert found.tolist() == pytest.approx([-6.0, 0.0, 6.0], abs=1.0)
    assert params["locs"].dtype == torch.float64


def test_kmeans_does_not_depend_on_the_units_of_the_columns() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        locs = pyro.param("locs", torch.zeros(2, 2, dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            scales = torch.tensor([1.0, 1e-4])
            pyro.sample("x", dist.Normal(locs[z], scales).to_event(1), obs=x)

    # The small column holds the clusters, the large one is noise.
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(40, generator=generator, dtype=torch.float64)
    signal = torch.tensor([-5e-4, 5e-4], dtype=torch.float64).repeat(20)
    params = EM(model, "mle", seed=0).initialise(torch.stack([noise, signal], -1))
    assert params["locs"][:, 1].sort().values.tolist() == pytest.approx([-5e-4, 5e-4], rel=0.3)


@pytest.mark.filterwarnings("ignore:.*max_iter:RuntimeWarning")  # some of these tiny fits are flat
@pytest.mark.parametrize("init", ["kmeans", "points", "random", "hierarchical"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_structure_can_start_and_fit(name: str, init: str) -> None:
    example = EXAMPLES[name]
    em = EM(example.model, init=init, seed=2, max_iter=200)
    start = em.initialise(*example.args, **example.kwargs)
    assert all(bool(torch.isfinite(value).all()) for value in start.values())
    fit = em.fit(*example.args, **example.kwargs)
    assert fit.converged or "max_iter" in fit.stop_reason
    assert fit.iterations >= 1
    assert bool((fit.history.diff() >= -1e-9 * (1.0 + fit.history[1:].abs())).all())


@pytest.mark.parametrize("init", ["kmeans", "points", "random", "hierarchical"])
def test_a_seed_repeats_a_fit(init: str) -> None:
    x = clusters()
    left = EM(mixture, init=init, seed=5, restarts=2).fit(x)
    torch.rand(7)
    right = EM(mixture, init=init, seed=5, restarts=2).fit(x)
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
    close(left.params, right.params)
    close(left.history, right.history)
    close(left.starts.objectives, right.starts.objectives)
    close(left.sample(10, seed=3)["x"], right.sample(10, seed=3)["x"])


def test_one_em_object_fits_twice_alike() -> None:
    x = clusters()
    em = EM(mixture, init="random", seed=5)
    torch.testing.assert_close(em.fit(x).history, em.fit(x).history, rtol=1e-12, atol=0)


def test_random_starts_differ_between_seeds() -> None:
    x = clusters()
    left = EM(mixture, init="random", seed=1).initialise(x)
    right = EM(mixture, init="random", seed=2).initialise(x)
    assert not torch.equal(left["locs"], right["locs"])


def test_a_dict_is_taken_as_it_is() -> None:
    x = clusters()
    start = {
        "weights": torch.tensor([0.2, 0.3, 0.5]),
        "locs": torch.tensor([-1.0, 0.0, 1.0]),
        "precisions": torch.tensor([1.0, 2.0, 3.0]),
    }
    found = EM(mixture, init=start).initialise(x)
    for name, value in start.items():
        assert torch.equal(found[name], value.double())
    fit = EM(mixture, init=start).fit(x)
    stats = EM(mixture).e_step(start, x)
    assert float(fit.history[0]) == pytest.approx(stats.objective, rel=1e-12)
    assert float(start["locs"][0]) == -1.0  # not written to


def test_a_partial_dict_keeps_what_is_given() -> None:
    x = clusters()
    locs = torch.tensor([-5.0, 1.0, 5.0])
    found = EM(mixture, init={"locs": locs}, seed=0).initialise(x)
    assert torch.equal(found["locs"], locs.double())
    assert set(found) == {"weights", "locs", "precisions"}


def test_a_callable_receives_the_arguments() -> None:
    def start(x: Tensor, components: int = 3) -> dict[str, Any]:
        return {"locs": torch.linspace(float(x.min()), float(x.max()), components)}

    x = clusters()
    found = EM(mixture, init=start, seed=0).initialise(x, components=3)
    assert float(found["locs"][0]) == pytest.approx(float(x.min()), rel=1e-12)


def test_restarts_keep_the_best_and_record_all() -> None:
    x = clusters()
    fit = EM(mixture, init="random", restarts=6, seed=3).fit(x)
    assert len(fit.starts) == 6
    assert fit.log_posterior == pytest.approx(float(fit.starts.objectives.max()), rel=1e-12)
    alone = EM(mixture, init="random", seed=3).fit(x)
    assert fit.log_posterior >= alone.log_posterior - 1e-9


def test_symmetric_starts_are_left() -> None:
    # All components alike is a saddle point; a start must not sit on it.
    fit = EM(mixture, seed=0).fit(clusters())
    locs = fit.params["locs"].sort().values
    assert float(locs.diff().min()) > 3.0


def test_a_model_of_unknown_family_starts_apart_too() -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(40, generator=generator, dtype=torch.float64)
    x = noise + torch.tensor([-4.0, 4.0], dtype=torch.float64).repeat(20)
    fit = EM(student_t, seed=0).fit(x)
    assert fit.params["locs"].sort().values.tolist() == pytest.approx([-4.0, 4.0], abs=0.8)


def test_global_state_is_untouched() -> None:
    x = clusters()
    pyro.param("mine", torch.tensor(1.5))
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    validation = torch.distributions.Distribution._validate_args
    grad = torch.is_grad_enabled()
    for init in ("kmeans", "random"):
        em = EM(mixture, init=init, restarts=2, seed=1)
        fit = em.fit(x)
        params = em.initialise(x)
        em.m_step(em.e_step(params, x))
        em.explain(x)
        fit.posterior("z")
        fit.predict(x[:4])
        fit.log_prob()
        fit.sample(3, seed=2)
    EM(mixture).fit(x)
    EM(EXAMPLES["tied_mixture"].model, seed=0).fit(*EXAMPLES["tied_mixture"].args)
    assert torch.equal(before[0], torch.get_rng_state())
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after, strict=True))
    assert before[2] == random.getstate()
    assert torch.get_default_dtype() is dtype
    assert torch.get_num_threads() == threads
    assert torch.distributions.Distribution._validate_args == validation
    assert torch.is_grad_enabled() == grad
    store = pyro.get_param_store()
    assert list(store.keys()) == ["mine"]
    assert float(store["mine"].detach()) == 1.5


def test_global_state_survives_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="empty"):
        EM(mixture, seed=1).fit(clusters()[:0])
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(before, torch.get_rng_state())
    assert not list(pyro.get_param_store().keys())


def test_data_are_not_written_to() -> None:
    x = clusters()
    copy = x.clone()
    EM(mixture, seed=0).fit(x)
    assert torch.equal(x, copy)
    assert x.grad is None
    assert not x.requires_grad


def test_results_carry_no_graph() -> None:
    fit = EM(mixture, seed=0).fit(clusters())
    assert not any(value.requires_grad for value in fit.params.values())
    assert not fit.log_prob().requires_grad
    assert not fit.posterior("z").probs.requires_grad
    assert fit.history.dtype == torch.float64
