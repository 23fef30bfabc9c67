"""Capture-recapture models (Cormack, Jolly and Seber): Pyro's own, with parameters inside the loop.

Each step's survival is drawn inside ``pyro.markov``; animals are masked before their first capture.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from ember.inference import EM
from tests.inference.brute_force import float64


def histories(animals: int, steps: int) -> tuple[Tensor, Tensor]:
    """Capture histories and the animals' sex; survival is 0.75, recapture 0.6."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, steps - 1, (animals,), generator=generator)
    sex = torch.randint(0, 2, (animals,), generator=generator).double()
    alive, y = torch.ones(animals), torch.zeros(animals, steps, dtype=torch.float64)
    for t in range(steps):
        lives = torch.rand(animals, generator=generator) < 0.75
        alive = torch.where(t > first, alive * lives, alive)
        seen = alive * (torch.rand(animals, generator=generator) < 0.6)
        y[:, t] = (t == first) + (t > first) * seen
    return y, sex


def cormack_jolly_seber(y: Tensor, sex: Tensor, kind: str) -> None:
    animals, steps = y.shape
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    phi: Any = 1.0
    if kind == "one survival":
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    if kind == "by sex":
        male = pyro.sample("phi_male", dist.Uniform(0.0, 1.0))
        female = pyro.sample("phi_female", dist.Uniform(0.0, 1.0))
        phi = sex * male + (1.0 - sex) * female
    if kind == "groups":
        with pyro.plate("sexes", 2):
            phi = pyro.sample("phi", dist.Beta(2.0, 2.0))
        phi = phi[..., sex.long()]
    if kind == "sex and time":
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0)) * sex
    z: Any = torch.ones(animals)
    marked = torch.zeros(animals).bool()
    plate = pyro.plate("animals", animals)
    for t in pyro.markov(range(steps)):
        if t and kind == "by time":
            phi = pyro.sample(f"phi_{t}", dist.Uniform(0.0, 1.0))
        if t and kind == "sex and time":
            phi = torch.sigmoid(beta + pyro.sample(f"gamma_{t}", dist.Normal(0.0, 10.0)))
        with plate, poutine.mask(mask=marked):  # type: ignore[call-overload]
            alive = torch.where(marked, phi * z, 1.0)
            z = pyro.sample(f"z_{t}", dist.Bernoulli(alive), infer={"enumerate": "parallel"})
            pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=y[:, t])
        marked = marked | y[:, t].bool()


KINDS = ["one survival", "by time", "by sex", "groups", "sex and time"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_is_where_the_elbo_of_pyro_has_no_gradient(kind: str) -> None:
    args = (*histories(150, 5), kind)
    fit = EM(cormack_jolly_seber, seed=0, tol=1e-12).fit(*args)
    assert fit.converged
    with float64():
        free = {name: p.clone().requires_grad_() for name, p in fit.params.items()}
        model = config_enumerate(poutine.condition(cormack_jolly_seber, data=free))
        elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        loss = elbo.differentiable_loss(model, lambda *args: None, *args)
        gradients = torch.autograd.grad(loss, list(free.values()))
    assert fit.log_posterior == pytest.approx(-float(loss.detach()), rel=1e-10)
    assert max(float(g.abs().max()) for g in gradients) < 1e-3


@pytest.mark.parametrize("kind", ["one survival", "by time", "by sex", "groups"])
def test_survival_and_recapture_have_closed_forms(kind: str) -> None:
    table = EM(cormack_jolly_seber).explain(*histories(20, 4), kind)
    parameters = table[table["role"] == "parameter"]
    assert set(parameters["M-step"]) == {"closed form"}
    assert table.set_index("site").loc["z_0 ... z_3", "E-step"] == "forward-backward over 2 states"


def test_parameters_of_the_loop_have_the_names_of_the_model() -> None:
    fit = EM(cormack_jolly_seber, seed=0).fit(*histories(60, 4), "by time")
    assert set(fit.params) == {"rho", "phi_1", "phi_2", "phi_3"}
    assert fit.predict().shape == (60, 4)
    assert set(fit.sample(60, seed=0)) == {"z", "y"}
