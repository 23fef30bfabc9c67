"""The device of the data decides: everything is computed there, and comes out as on the CPU.

On a stand-in for a device, which refuses what a real one refuses; ``test_gpu.py`` needs a real one.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, SVI, VBEM, Fit, compare, select
from ember.inference.inputs.devices import device_of
from ember.models import (
    emission_tomography,
    gaussian_mixture,
    generalised_linear_mixed_model,
    item_response,
)
from tests.further import with_further
from tests.inference.device_cases import CASES, COUNTS, GROUPS, LEVELS, LINE, POINTS, Case, on
from tests.inference.stand_in_device import DEVICE, Away, copied_from, stand_in_device

# Fits are cut short here, as each of their operations takes ten times as long.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TOLERANCE = 1e-9


@functools.cache
def fit_here(name: str) -> Fit:
    return CASES[name].fit()


@functools.cache
def fit_there(name: str) -> Fit:
    return CASES[name].fit(DEVICE)


@pytest.fixture(autouse=True)
def _one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled loops sum in another order than the operations that take their place elsewhere."""
    monkeypatch.setenv("EMBER_COMPILED", "0")


@pytest.fixture
def device() -> Iterator[torch.device]:
    with stand_in_device() as found:
        yield found


def same(there: Any, here: Any) -> None:
    """That something computed on the device lies there, and is what the CPU has."""
    if isinstance(here, Tensor):
        assert isinstance(there, Away)
        torch.testing.assert_close(
            there.cpu(), here, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
        )
    elif isinstance(here, dict):
        assert list(there) == list(here)
        for name, value in here.items():
            same(there[name], value)
    elif isinstance(here, pd.DataFrame):
        pd.testing.assert_frame_equal(there, here, rtol=1e-6, atol=1e-9)
    else:
        raise TypeError(type(here).__name__)


# -- fits ---------------------------------------------------------------------------------------


FURTHER = (  # the stand-in takes its time
    *("diagonal covariances", "spheres", "one covariance", "maximum likelihood"),
    *("weights and a prior", "several starts", "chains", "a series"),
)


@pytest.mark.parametrize("name", with_further(CASES, FURTHER))
def test_a_fit_is_the_same(name: str, device: torch.device) -> None:
    here, there = fit_here(name), fit_there(name)
    same(there.params, here.params)
    assert all(value.dtype == torch.float64 for value in there.params.values())
    assert there.stop_reason == here.stop_reason
    assert there.log_likelihood == pytest.approx(here.log_likelihood, rel=TOLERANCE)
    torch.testing.assert_close(there.history, here.history, rtol=TOLERANCE, atol=TOLERANCE)


SYSTEM = torch.rand(COUNTS.shape[0], 5, generator=torch.Generator().manual_seed(1)).double()
FEW_STEPS = {
    "on nodes": Case(item_response, ((LEVELS > 0).double(),)),
    "by units": Case(
        generalised_linear_mixed_model, (COUNTS, LINE.unsqueeze(-1)),
        {"groups": GROUPS, "family": "poisson"},
    ),
    "a matrix": Case(emission_tomography, (COUNTS, SYSTEM)),
}  # fmt: skip


@pytest.mark.parametrize("name", FEW_STEPS)
def test_a_step_is_the_same(name: str) -> None:
    case = FEW_STEPS[name]

    def stepped() -> Any:
        em = EM(case.model, seed=0)
        plan = em.plan(*case.args, **case.kwargs)
        statistics = em.e_step(em.initialise(plan), plan)
        return statistics.log_likelihood, em.m_step(statistics)

    value, here = stepped()
    with stand_in_device() as device:
        case = Case(case.model, *on(device, (case.args, case.kwargs)))
        again, there = stepped()
        same(there, here)
    assert again == pytest.approx(value, rel=TOLERANCE)


def coins(heads: Tensor) -> None:
    """A user's model, which says nothing of devices."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("kinds", 2):
        bias = pyro.sample("bias", dist.Beta(torch.tensor(2.0), torch.tensor([1.5, 3.0])))
    with pyro.plate("rows", len(heads)):
        kind = pyro.sample("kind", dist.Categorical(weights))
        pyro.sample("heads", dist.Binomial(10, bias[kind]), obs=heads)


def test_a_model_need_not_name_the_device(device: torch.device) -> None:
    case = Case(coins, (COUNTS.clamp_max(10.0),))
    same(case.fit(device).params, case.fit().params)


# -- answers ------------------------------------------------------------------------------------

QUESTIONS: dict[str, tuple[str, Callable[[Fit], Any]]] = {
    "posterior": ("missing entries", lambda fit: fit.posterior("assignment").probs),
    "most probable": ("missing entries", lambda fit: fit.predict()),
    "log density": ("missing entries", lambda fit: fit.log_prob()),
    "filled in": ("missing entries", lambda fit: fit.impute()),
    "drawn in": ("missing entries", lambda fit: fit.impute(draws=2, seed=0)),
    "draws": ("missing entries", lambda fit: fit.sample(3, seed=0)),
    "draws of estimates": ("missing entries", lambda fit: fit.laplace_samples(3, seed=0)),
    "standard errors": ("full covariances", lambda fit: fit.summary(errors=True)),
    "rows of the CPU": ("full covariances", lambda fit: fit.predict(POINTS[:5])),
    "neighbours": ("a chain", lambda fit: fit.posterior_pairs("state")),
    "ahead": ("a chain", lambda fit: fit.forecast("state").probs),
    "paths": ("a chain", lambda fit: fit.latent_samples(2, seed=0)),
    "effects": ("effects of groups", lambda fit: fit.posterior("group_effects").mean),
    "fitted values": ("effects of groups", lambda fit: fit.predictive().mean),
    "draws of effects": ("effects of groups", lambda fit: fit.latent_samples(2, seed=0)),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_the_same(question: str, device: torch.device) -> None:
    name, ask = QUESTIONS[question]
    same(ask(fit_there(name)), ask(fit_here(name)))


@pytest.mark.parametrize("name", ["full covariances", "a chain", "lines", "levels"])
def test_a_picture_is_drawn(name: str, device: torch.device) -> None:
    fit = fit_there(name)
    assert fit.plot().axes
    assert str(fit).startswith("EM (MAP)")


def test_rows_for_a_fit_on_the_cpu_are_brought_there(device: torch.device) -> None:
    fit = fit_here("full covariances")
    states = fit.predict(on(device, POINTS))
    assert not isinstance(states, Away)
    assert torch.equal(states, fit.predict())


METHODS: dict[str, Any] = {
    "VBEM": VBEM(gaussian_mixture, seed=0, max_iter=5),
    "SVI": SVI(gaussian_mixture, steps=10, seed=0),
}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_work_there(method: str, device: torch.device) -> None:
    here = METHODS[method].fit(POINTS, components=2)
    there = METHODS[method].fit(on(device, POINTS), components=2)
    same(there.params, here.params)


def test_fits_are_compared(device: torch.device) -> None:
    methods = [
        EM(gaussian_mixture, seed=0, accelerate=accelerate, max_iter=3)
        for accelerate in ("auto", None)
    ]
    here = compare(methods, POINTS, components=2)
    there = compare(methods, on(device, POINTS), components=2)
    assert not there.errors
    columns = ["log likelihood", "log posterior"]
    pd.testing.assert_frame_equal(there.table[columns], here.table[columns], rtol=TOLERANCE)
    assert there.plot().axes


@pytest.mark.thorough
def test_components_are_chosen_by_rows_held_out(device: torch.device) -> None:
    options: dict[str, Any] = {
        "components": [1, 2],
        "criterion": "held_out",
        "folds": 2,
        "em": {"seed": 0, "max_iter": 2},
    }
    here = select(gaussian_mixture, POINTS, **options)
    there = select(gaussian_mixture, on(device, POINTS), **options)
    pd.testing.assert_frame_equal(
        there.table[["held_out"]], here.table[["held_out"]], rtol=TOLERANCE
    )


# -- what goes from place to place ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["full covariances", "heavy tails"])
def test_rows_stay_there(name: str, device: torch.device) -> None:
    case = CASES[name]
    rows = len(case.args[0])
    with copied_from() as sizes:
        fit = case.fit(device)
        fit.predict()
        fit.log_prob()
    large = [size for size in sizes if size >= rows]
    # A start by clusters looks at the rows once, on the CPU; a model without states has none.
    assert len(large) == (name == "full covariances")
    with copied_from() as sizes:
        EM(case.model, init=fit.params, seed=0, max_iter=3).fit(
            *on(device, case.args), **on(device, case.kwargs)
        )
    assert max(sizes) < rows


def test_the_other_arguments_follow_the_data(device: torch.device) -> None:
    here = CASES["weights and a prior"]
    frequency = here.kwargs["frequency"].numpy()
    prior = {"concentration": [2.0, 3.0]}
    there = EM(gaussian_mixture, seed=0, **here.options).fit(
        on(device, POINTS), **{**here.kwargs, "frequency": frequency, "prior": prior}
    )
    same(there.params, fit_here("weights and a prior").params)


def test_arrays_go_to_the_default_device(device: torch.device) -> None:
    em = EM(gaussian_mixture, seed=0, max_iter=3)
    here = em.fit(POINTS.numpy(), components=2)
    with device:
        there = em.fit(POINTS.numpy(), components=2)
        on_the_cpu = em.fit(POINTS, components=2)
    same(there.params, here.params)
    assert not any(isinstance(value, Away) for value in on_the_cpu.params.values())


def test_data_on_two_devices_are_refused(device: torch.device) -> None:
    other = Tensor._make_wrapper_subclass(Away, (2,), device=torch.device("xpu"))
    with pytest.raises(ValueError, match="several devices, meta and xpu"):
        device_of((on(device, POINTS), {"x": [other]}))


def test_a_file_knows_no_device(tmp_path: Path) -> None:
    path = tmp_path / "points.ember"
    with stand_in_device() as device:
        fit = fit_there("full covariances")
        fit.save(path)
        states = fit.predict().cpu()
    loaded = Fit.load(path, gaussian_mixture)  # where the device is not there
    assert torch.equal(loaded.predict(), states)
    with stand_in_device() as device:
        again = Fit.load(path, gaussian_mixture, on(device, POINTS), components=2)
        assert torch.equal(again.predict().cpu(), states)


def test_the_random_state_is_the_callers(device: torch.device) -> None:
    state = torch.get_rng_state()
    fit = CASES["levels"].fit(device)
    first, second = (fit.sample(3, seed=1)["x"] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)


# -- the stand-in -------------------------------------------------------------------------------

MIXTURES: dict[str, Callable[[Tensor], object]] = {
    "a sum": lambda x: x + torch.ones(3),
    "a product": lambda x: torch.ones(2, 3) @ x,
    "a number in a stack": lambda x: torch.stack([x[0], torch.zeros(())]),
    "a place": lambda x: x[torch.tensor([0, 1])],
    "a sum into a number": lambda x: torch.zeros(()).add_(x[0]),
    "a generator": lambda x: torch.rand(3, generator=torch.Generator(), device=DEVICE),
    "an array": lambda x: np.asarray(x),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_stand_in_refuses_to_mix(mixture: str, device: torch.device) -> None:
    x = torch.arange(3.0).to(device)
    with pytest.raises(RuntimeError, match=r"of the CPU|numpy\(\)"):
        MIXTURES[mixture](x)
    assert (x + torch.ones(()) + x.cpu().to(device)).tolist() == [1.0, 3.0, 5.0]
