"""Newton's steps end where they no longer lead anywhere, and a fall by rounding is called that."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.numerics import newton
from ember.inference.optimality.nearby import rounding
from ember.inference.plan.statistics import Statistics


def test_steps_below_rounding_are_not_repeated() -> None:
    calls = []

    def flat(free: Tensor) -> Tensor:
        calls.append(float(free.detach()[0]))
        return 1e6 + 1e-12 * torch.exp(-free).sum()  # falls for ever, by nothing that shows

    newton.minimise(flat, torch.zeros(1, dtype=torch.float64))
    assert len(calls) < 10


def test_a_quadratic_takes_one_step() -> None:
    target = torch.tensor([3.0, -2.0], dtype=torch.float64)
    found = newton.minimise(lambda free: (free - target).square().sum(), 0.0 * target)
    assert found is not None
    assert found.tolist() == pytest.approx([3.0, -2.0], abs=1e-12)


def test_rounding_is_measured_where_the_data_are_far_from_zero() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.StudentT(3.0, loc, 1e-4), obs=x)

    noise = 1e-4 * torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    em = EM(model, "mle", seed=0)
    near = em.e_step({"loc": torch.tensor(0.0)}, noise)
    assert rounding(lambda params: em.e_step(params, noise), near) < 1e-9
    far: Statistics = em.e_step({"loc": torch.tensor(1e8).double()}, 1e8 + noise)
    assert rounding(lambda params: em.e_step(params, 1e8 + noise), far) > 1e-6
