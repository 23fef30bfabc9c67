"""Small terms beside huge ones: a parameter may be lost in the rounding of another's product.

The right values are the log densities of the data, written down directly.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM

Params = Mapping[str, Tensor]
Direct = Callable[[Params, Tensor], Any]

ROWS = 15
G = torch.Generator().manual_seed(0)
HUGE = 5e9 + 1e9 * torch.randn(ROWS, generator=G, dtype=torch.float64)
MIXED = torch.where(torch.arange(ROWS) % 3 == 0, 0.5, HUGE)
REALS = torch.randn(ROWS, generator=G, dtype=torch.float64)
COUNTS = torch.arange(ROWS).double() % 4
BITS = (REALS > 0).double()

REAL = constraints.real
POSITIVE = constraints.positive
TINY = constraints.interval(-0.0012, 0.0012)

# Name to the supports of the parameters, their values, the distribution and the data.
CASES: dict[str, tuple[dict[str, tuple[constraints.Constraint, float]], Direct, Tensor]] = {
    "confined height": (
        {"a": (TINY, 1e-3), "b": (REAL, -1e-14), "s": (POSITIVE, 1e-3)},
        lambda p, x: dist.Normal(p["a"] + p["b"] * x, p["s"]),
        1e-3 * REALS,
    ),
    "confined height of a Laplace": (
        {"a": (TINY, 1e-3), "b": (REAL, 1e-17), "s": (POSITIVE, 1e-3)},
        lambda p, x: dist.Laplace(p["a"] + p["b"] * x * 1e3, p["s"]),
        1e-3 * REALS,
    ),
    "positive slope": (
        {"a": (REAL, 1.0), "b": (POSITIVE, 1e-10)},
        lambda p, x: dist.Normal(1e3 * p["b"] * x + p["a"], 1.0),
        REALS,
    ),
    "tiny covariate": (
        {"a": (REAL, 1.0), "b": (REAL, 1e14)},
        lambda p, x: dist.Normal(p["a"] + p["b"] * x * 1e-24, 1.0),
        REALS,
    ),
    "product of coefficients": (
        {"a": (REAL, 1.0), "b": (REAL, 2.0), "c": (REAL, 1e-15)},
        lambda p, x: dist.Normal(p["a"] * p["b"] + p["c"] * x * 1e5, 1.0),
        REALS,
    ),
    "scale": (
        {"s": (POSITIVE, 1.0), "t": (POSITIVE, 1e-17)},
        lambda p, x: dist.Normal(0.0, p["s"] + p["t"] * x * 1e6),
        REALS,
    ),
    "rate of an Exponential": (
        {"s": (POSITIVE, 1.0), "t": (POSITIVE, 1e-16)},
        lambda p, x: dist.Exponential(p["s"] + p["t"] * x * 1e6),
        REALS.exp(),
    ),
    "rate of a Gamma": (
        {"a": (POSITIVE, 2.0), "s": (POSITIVE, 1.0), "t": (POSITIVE, 1e-16)},
        lambda p, x: dist.Gamma(p["a"], p["s"] + p["t"] * x * 1e6),
        REALS.exp(),
    ),
    "superposition": (
        {"s": (POSITIVE, 1.0), "t": (POSITIVE, 1e-24)},
        lambda p, x: dist.Poisson(p["s"] + p["t"] * x * 1e14),
        COUNTS,
    ),
    "log rate": (
        {"a": (TINY, 1e-3), "b": (REAL, 1e-10)},
        lambda p, x: dist.Poisson((1e-3 * p["a"] + p["b"] * x).exp()),
        COUNTS,
    ),
    "rate that underflows": (
        {"b": (POSITIVE, 1e-10)},
        lambda p, x: dist.Poisson((-p["b"] * x).exp()),
        COUNTS,
    ),
    "logits": (
        {"a": (REAL, 1.0), "b": (POSITIVE, 1e-10)},
        lambda p, x: dist.Bernoulli(logits=p["a"] + p["b"] * x),
        BITS,
    ),
    "probabilities of one": (
        {"b": (POSITIVE, 1e-10)},
        lambda p, x: dist.Bernoulli((p["b"] * x).sigmoid()),
        BITS,
    ),
    "logits of classes": (
        {"a": (REAL, 1.0), "b": (POSITIVE, 1e-10)},
        lambda p, x: dist.Categorical(logits=torch.stack([p["a"] + p["b"] * x, 0.0 * x], -1)),
        BITS,
    ),
    "vector": (
        {"a": (REAL, 1.0), "b": (REAL, 1e-14)},
        lambda p, x: dist.MultivariateNormal(
            (p["a"] + p["b"] * 1e14).expand(2) * torch.tensor([1.0, 2.0]), torch.eye(2).double()
        ),
        torch.stack([REALS, BITS], -1),
    ),
}


@pytest.mark.parametrize("x", [HUGE, MIXED], ids=["huge", "mixed"])
@pytest.mark.parametrize("case", CASES)
def test_a_small_term_beside_a_huge_one_counts(case: str, x: Tensor) -> None:
    parameters, direct, y = CASES[case]

    def model(y: Tensor, x: Tensor) -> None:
        p = {n: pyro.param(n, torch.tensor(v), constraint=s) for n, (s, v) in parameters.items()}
        with pyro.plate("n", len(y)):
            pyro.sample("y", direct(p, x), obs=y)

    params = {
        name: torch.tensor(value, dtype=torch.float64) for name, (_, value) in parameters.items()
    }
    em = EM(model, objective="mle")
    found = em.e_step(params, y, x).log_likelihood
    assert found == pytest.approx(float(direct(params, x).log_prob(y).sum()), rel=1e-9)
    assert "does not enter" not in str(em.explain(y, x))


def test_entries_of_one_parameter_count_beside_each_other() -> None:
    def scale(t: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(HUGE), 1e5 * HUGE], -1) @ t.double()

    def model(y: Tensor) -> None:
        t = pyro.param("t", torch.ones(2), constraint=POSITIVE)
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale(t)), obs=y)

    t = torch.tensor([1.0, 1e-14], dtype=torch.float64)
    found = EM(model, objective="mle").e_step({"t": t}, REALS).log_likelihood
    assert found == pytest.approx(float(dist.Normal(0.0, scale(t)).log_prob(REALS).sum()))


def test_a_line_over_seconds_with_a_positive_slope_is_least_squares() -> None:
    x = 1.7e9 + 1e5 * REALS
    y = 3.0 + 2e-5 * (x - 1.7e9) + 0.3 * torch.sin(torch.arange(ROWS) * 2.0)

    def model(y: Tensor, x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.0))
        b = pyro.param("b", torch.tensor(1e-5), constraint=POSITIVE)
        s = pyro.param("s", torch.tensor(1.0), constraint=POSITIVE)
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(a + b * x, s), obs=y)

    fit = EM(model, objective="mle").fit(y, x)
    columns = torch.stack([torch.ones_like(x), x - 1.7e9], -1)
    left = y - columns @ torch.linalg.lstsq(columns, y).solution
    truth = dist.Normal(0.0, left.square().mean().sqrt()).log_prob(left).sum()
    assert fit.log_likelihood == pytest.approx(float(truth), rel=1e-7)


def test_a_shift_of_all_logits_hides_nothing() -> None:
    def model(y: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.3))
        share = pyro.param("share", torch.tensor([0.2, 0.8]), constraint=constraints.simplex)
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Categorical(logits=share.log() + shift), obs=y)

    table = EM(model, objective="mle").explain(BITS).set_index("site")
    assert table.loc["share", "M-step"] == "closed form"
    assert "does not enter" in str(table.loc["shift", "why"])
