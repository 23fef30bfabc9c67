"""Fits of data on a CUDA device; ``test_devices.py`` asks more, of a stand-in on the CPU."""

from pathlib import Path

import pytest
import torch

from ember.inference import EM, Fit
from ember.models import gaussian_mixture
from tests.inference.device_cases import CASES, POINTS

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

CUDA = torch.device("cuda", 0)
CLOSE = 1e-5  # relative: a GPU sums in another order, and fits end by a tolerance


@pytest.mark.parametrize("name", CASES)
def test_a_fit_is_the_same(name: str) -> None:
    here, there = CASES[name].fit(), CASES[name].fit(CUDA)
    assert there.converged == here.converged
    assert there.log_likelihood == pytest.approx(here.log_likelihood, rel=1e-8)
    for site, value in here.params.items():
        assert there.params[site].device == CUDA
        assert there.params[site].dtype == torch.float64
        torch.testing.assert_close(there.params[site].cpu(), value, rtol=CLOSE, atol=CLOSE)


def test_single_precision_is_summed_in_double() -> None:
    x = 1e4 + torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    here = EM(gaussian_mixture, seed=0).fit(x.double(), components=1)
    there = EM(gaussian_mixture, seed=0).fit(x.to(CUDA), components=1)
    torch.testing.assert_close(there.params["locs"].cpu(), here.params["locs"], rtol=1e-12, atol=0)
    assert there.log_likelihood == pytest.approx(here.log_likelihood, rel=1e-12)


def test_rows_are_held_on_the_device() -> None:
    x = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0)).to(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    fit = EM(gaussian_mixture, init="points", seed=0, max_iter=3, tol=0.0).fit(x, components=2)
    assert torch.cuda.memory_allocated(CUDA) - before >= 8 * x.numel()  # in float64
    assert all(value.device == CUDA for value in fit.plan.structure.arguments.tensors)
    assert fit.predict().device == CUDA


def test_a_file_knows_no_device(tmp_path: Path) -> None:
    path = tmp_path / "points.ember"
    fit = CASES["full covariances"].fit(CUDA)
    fit.save(path)
    loaded = Fit.load(path, gaussian_mixture)
    assert all(value.device.type == "cpu" for value in loaded.params.values())
    assert torch.equal(loaded.predict(POINTS), fit.predict().cpu())


def test_the_random_states_are_the_callers() -> None:
    states = torch.get_rng_state(), torch.cuda.get_rng_state(CUDA)
    fit = CASES["levels"].fit(CUDA)
    first, second = (fit.sample(3, seed=1)["x"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(CUDA), states[1])
