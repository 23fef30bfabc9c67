"""Stick-breaking weights, and other products of powers of probabilities: Beta counts."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan

ALPHA = 1.7


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)


def mix_weights(beta: Tensor) -> Tensor:
    """As in Pyro's tutorial on Dirichlet process mixtures."""
    rest = (1 - beta).cumprod(-1)
    return F.pad(beta, (0, 1), value=1) * F.pad(rest, (1, 0), value=1)


def truncated(x: Tensor, sizes: int) -> None:
    with pyro.plate("breaks", sizes - 1):
        beta = pyro.sample("beta", dist.Beta(1.0, ALPHA))
    with pyro.plate("components", sizes):
        locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(mix_weights(beta)))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def moves(x: Tensor, sizes: int) -> None:
    """Every row of a transition matrix is a broken stick."""
    with pyro.plate("states", sizes):
        sticks = dist.Beta(1.0, ALPHA).expand([sizes - 1]).to_event(1)
        beta = pyro.sample("beta", sticks)
        locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
    first = torch.full((sizes,), 1.0 / sizes).log()
    chain = dist.DiscreteHMM(first, mix_weights(beta).log(), dist.Normal(locs, 1.0))
    pyro.sample("x", chain, obs=x)


def data() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, generator=generator)
    return x + torch.tensor([-6.0, 0.0, 7.0]).repeat_interleave(torch.tensor([30, 10, 20]))


def how(em: EM, name: str, *args: Any, **kwargs: Any) -> str:
    return str(em.explain(*args, **kwargs).set_index("site").loc[name, "M-step"])


@pytest.mark.parametrize("objective", ["map", "mle"])
@pytest.mark.parametrize("sizes", [2, 3, 5, 20])
def test_sticks_of_a_mixture_are_beta_counts(sizes: int, objective: str) -> None:
    x, em = data(), EM(truncated, objective, seed=0)
    assert how(em, "beta", x, sizes=sizes) == "closed form"
    beta, locs = torch.linspace(0.2, 0.6, sizes - 1), torch.linspace(-6.0, 7.0, sizes)
    stats = em.e_step({"beta": beta, "locs": locs}, x, sizes=sizes)
    joint = mix_weights(beta).log() + dist.Normal(locs, 1.0).log_prob(x[:, None])
    assert stats.log_likelihood == pytest.approx(float(joint.logsumexp(1).sum()), rel=1e-12)
    counts = joint.softmax(1).sum(0)
    later = counts.flip(0).cumsum(0).flip(0)[1:] + (ALPHA - 1.0) * (objective == "map")
    torch.testing.assert_close(em.m_step(stats)["beta"], counts[:-1] / (counts[:-1] + later))


@pytest.mark.parametrize("objective", ["map", "mle"])
@pytest.mark.parametrize("sizes", [2, 4])
def test_sticks_of_transition_rows_are_beta_counts(sizes: int, objective: str) -> None:
    x, em = data(), EM(moves, objective, seed=0, init={"locs": torch.linspace(-6, 7, sizes)})
    assert how(em, "beta", x, sizes=sizes) == "closed form"
    fit = em.fit(x, sizes=sizes)
    # At the optimum the sticks are the shares of the moves that the posterior expects. A chain of
    # Pyro's moves before its first step.
    before = mix_weights(fit.params["beta"])[None] / sizes
    first = fit.posterior("state").probs[0] * before / before.sum(1, keepdim=True)
    counts = first[0] + fit.posterior_pairs("state").sum(0)
    later = counts.flip(1).cumsum(1).flip(1)[:, 1:] + (ALPHA - 1.0) * (objective == "map")
    expected = counts[:, :-1] / (counts[:, :-1] + later)
    known = ~expected.isnan()  # without a move that gets so far nothing is known
    torch.testing.assert_close(fit.params["beta"][known], expected[known], rtol=0, atol=1e-4)


def test_closed_and_numerical_steps_lead_to_the_same_optimum() -> None:
    x, start = data(), {"beta": torch.full((2,), 0.4), "locs": torch.tensor([-6.0, 0.0, 7.0])}
    fit = EM(truncated, init=start).fit(x, sizes=3)
    with sheltered(0, x):
        plan = build_plan(truncated, prepare((x,), {"sizes": 3}), "map", probing=False)
        params = {n: v.clone().requires_grad_() for n, v in fit.params.items()}
        objective = LogEvidence.of(plan)(params) + plan.prior.log_prob(params)
        slopes = torch.autograd.grad(objective, list(params.values()))
    assert float(objective.detach()) == pytest.approx(fit.log_posterior, rel=1e-12)
    for slope in slopes:
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-3)


def test_several_starts_move_their_sticks_together() -> None:
    x = data()
    one, several = EM(truncated, seed=0), EM(truncated, seed=0, restarts=5)
    best = several.fit(x, sizes=4)
    assert best.log_posterior >= one.fit(x, sizes=4).log_posterior - 1e-6
    weights = mix_weights(best.params["beta"])
    assert float(weights.sum()) == pytest.approx(1.0)


def test_genotypes_count_their_alleles() -> None:
    """Hardy and Weinberg: with n = (10, 20, 5), Beta(2, 2): (40 + 1) / (70 + 2)."""

    def genotypes(n: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        shares = torch.stack([p**2, 2 * p * (1 - p), (1 - p) ** 2])
        pyro.sample("n", dist.Multinomial(35, shares), obs=n)

    n = torch.tensor([10.0, 20.0, 5.0])
    assert how(EM(genotypes), "p", n) == "closed form"
    fit = EM(genotypes).fit(n)
    assert float(fit.params["p"]) == pytest.approx(41 / 72, rel=1e-12)
    shares = torch.tensor([(41 / 72) ** 2, 2 * 41 * 31 / 72**2, (31 / 72) ** 2])
    truth = dist.Multinomial(35, shares).log_prob(n)
    assert fit.log_likelihood == pytest.approx(float(truth), rel=1e-12)


def test_a_share_and_its_complement() -> None:
    """Two components with the weights p and 1 - p: (n + 2 - 1) / (N + 2 + 3 - 2)."""

    def two(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.stack([p, 1.0 - p])))
            pyro.sample("x", dist.Normal(torch.tensor([-6.0, 7.0])[z], 1.0), obs=x)

    x, at = data(), torch.tensor(0.3)
    assert how(EM(two), "p", x) == "closed form"
    joint = torch.stack([at, 1 - at]).log() + dist.Normal(torch.tensor([-6.0, 7.0]), 1.0).log_prob(
        x[:, None]
    )
    stats = EM(two).e_step({"p": at}, x)
    expected = (joint.softmax(1)[:, 0].sum() + 1.0) / (len(x) + 3.0)
    torch.testing.assert_close(EM(two).m_step(stats)["p"], expected)


def test_many_levels_are_no_lookup() -> None:
    """A stick of eighty pieces, observed: shares of those that got so far."""

    def pieces(n: Tensor) -> None:
        beta = pyro.param("beta", torch.full((79,), 0.5), constraint=dist.constraints.unit_interval)
        with pyro.plate("rows", len(n)):
            pyro.sample("n", dist.Categorical(mix_weights(beta)), obs=n)

    n = torch.arange(200) % 80
    counts = torch.bincount(n).double()
    expected = counts[:-1] / counts.flip(0).cumsum(0).flip(0)[:-1]
    torch.testing.assert_close(EM(pieces).fit(n).params["beta"], expected)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_what_only_resembles_sticks_is_numerical(power: float) -> None:
    """Pieces that do not add up to one, and are divided by their sum."""

    def pieces(n: Tensor) -> None:
        beta = pyro.sample("beta", dist.Beta(2.0, 2.0).expand([3]).to_event(1))
        with pyro.plate("rows", len(n)):
            pyro.sample("n", dist.Categorical(mix_weights(beta)[:3] ** power), obs=n)

    assert how(EM(pieces), "beta", torch.arange(30) % 3) == "numerical"
