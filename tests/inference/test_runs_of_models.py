"""How often a model is run to be read: runs on all rows of large data are what reading costs."""

from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.models import factor_analysis

ROWS = 2_500


def _data() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(ROWS, 2) @ torch.randn(2, 4) + torch.randn(ROWS, 4)


def test_factors_are_read_off_few_runs_on_all_rows() -> None:
    runs: Counter[int] = Counter()

    def model(x: Tensor) -> None:
        runs[len(x)] += 1
        factor_analysis(x, 2)

    EM(model, "mle", seed=0).plan(_data())
    assert runs[ROWS] <= 9  # a plain one, two enumerated, five probes, one with latents drawn
    assert sum(runs.values()) > runs[ROWS]


def test_a_model_that_differs_on_few_rows_is_read_on_all() -> None:
    def model(x: Tensor) -> None:
        loadings = pyro.sample("loadings", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            signs = torch.where(torch.arange(len(x)) < 100, 1.0, -1.0)
            location = (signs * z).unsqueeze(-1) * loadings
            pyro.sample("x", dist.Normal(location, scale).to_event(1), obs=x)

    plan = EM(model, "mle", integrate={"z": "gaussian"}, seed=0).plan(_data())
    (slot,) = plan.sites["x"].slots
    assert slot.coefficient.reshape(ROWS, -1)[[0, 99, 100, -1], 0].tolist() == [
        1.0,
        1.0,
        -1.0,
        -1.0,
    ]


def test_randomness_beyond_the_few_rows_is_refused() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(4), 10.0).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            noise = torch.where(torch.arange(len(x)) < 100, 0.0, torch.randn(len(x)))
            location = loc + (z + noise).unsqueeze(-1)
            pyro.sample("x", dist.Normal(location, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="draws random numbers of its own"):
        EM(model, "mle", integrate={"z": "gaussian"}, seed=0).plan(_data())
