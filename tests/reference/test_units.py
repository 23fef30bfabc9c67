"""Published maximum-likelihood estimates of models with latents of units."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.models import generalised_linear_mixed_model


def test_seeds() -> None:
    """Germination on 21 plates (Crowder 1978): Breslow & Clayton (1993), table 2, ML."""
    seeds = [39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7]
    grown = [10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3]
    kind = torch.tensor([0.0] * 11 + [1.0] * 10).double()
    extract = torch.tensor([0.0] * 5 + [1.0] * 6 + [0.0] * 5 + [1.0] * 5).double()
    fit = EM(generalised_linear_mixed_model, "mle", seed=0).fit(
        torch.tensor(grown).double(),
        torch.stack([kind, extract, kind * extract], 1),
        groups=torch.arange(21),
        family="binomial",
        trials=torch.tensor(seeds),
    )
    assert fit.params["coefficients"].tolist() == pytest.approx(
        [-0.548, 0.097, 1.337, -0.811], abs=1e-3
    )
    assert float(fit.params["group_variance"]) ** 0.5 == pytest.approx(0.236, abs=1e-3)


def test_orange_trees() -> None:
    """Five trees (Draper & Smith 1981): lme4's example of ``nlmer``, a logistic curve."""
    age = torch.tensor([118.0, 484, 664, 1004, 1231, 1372, 1582]).double().repeat(5)
    tree = torch.arange(5).repeat_interleave(7)
    y = torch.tensor(
        [
            [30.0, 58, 87, 115, 120, 142, 145],
            [33, 69, 111, 156, 172, 203, 203],
            [30, 51, 75, 108, 115, 139, 140],
            [32, 62, 112, 167, 179, 209, 214],
            [30, 49, 81, 125, 142, 174, 177],
        ]
    )
    positive = dist.constraints.positive
    nodes: Any = {"integrate": "quadrature"}

    def model(y: Tensor, age: Tensor, tree: Tensor) -> None:
        curve = pyro.param("curve", torch.tensor([200.0, 700.0, 300.0]), constraint=positive)
        spreads = pyro.param("spreads", torch.tensor([20.0, 10.0]), constraint=positive)
        with pyro.plate("trees", 5):
            own = pyro.sample("own", dist.Normal(curve[0], spreads[0]), infer=nodes)
        with pyro.plate("rows", len(y)):
            height = own[tree] * torch.sigmoid((age - curve[1]) / curve[2])
            pyro.sample("y", dist.Normal(height, spreads[1]), obs=y)

    fit = EM(model, "mle", seed=0).fit(y.reshape(-1).double(), age, tree)
    assert fit.log_likelihood == pytest.approx(-131.57, abs=5e-3)
    assert fit.params["curve"].tolist() == pytest.approx([192.05, 727.9, 348.07], abs=0.02)
    assert fit.params["spreads"].tolist() == pytest.approx([31.65, 7.843], abs=5e-3)
