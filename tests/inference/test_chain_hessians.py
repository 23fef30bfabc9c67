"""Second derivatives of a chain's log evidence, against those of the sum over every path."""

import functools
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference.expectation.chains.blocks import Potentials
from ember.inference.expectation.chains.evidence import chain_log_evidence
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan
from tests.inference.chain_checks import in_blocks
from tests.inference.random_chains import K, R, T, random_chains


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)


def hessian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    found: Tensor = torch.autograd.functional.hessian(function, at)
    return found


def every_path(chains: Potentials, r: int) -> Tensor:
    """The log joints of all paths of chain ``r``."""
    end = T if chains.lengths is None else int(chains.lengths[r])
    paths = torch.cartesian_prod(*[torch.arange(K)] * end).reshape(-1, end)
    steps = torch.arange(end - 1) if len(chains.transition) > 1 else 0
    own = chains.transition[:, r if chains.transition.shape[1] > 1 else 0]
    total = chains.initial[r, paths[:, 0]] + chains.emission[torch.arange(end), r, paths].sum(1)
    return total + own[steps, paths[:, :-1], paths[:, 1:]].sum(1)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 3, 1])])
@pytest.mark.parametrize("own", [1, R])
@pytest.mark.parametrize("times", [1, T - 1])
def test_hessian_equals_that_of_every_path(
    times: int, own: int, lengths: Tensor | None, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Potentials that are functions of each other, and evidence that goes on into a function."""
    in_blocks(monkeypatch, blocks)
    chains = random_chains(times, own, lengths).detach()
    direction = torch.randn(K)

    def moved(x: Tensor) -> Potentials:
        transition = chains.transition * (1.0 + x[:K]) + x[K:].exp()
        emission = chains.emission + torch.tanh(transition).mean() * direction * x[:K]
        return Potentials(chains.initial + x[:K].square(), transition, emission, lengths)

    def ours(x: Tensor) -> Tensor:
        return (0.1 * chain_log_evidence(moved(x))).exp().sum()

    def theirs(x: Tensor) -> Tensor:
        total = [every_path(moved(x), r).logsumexp(0) for r in range(R)]
        return (0.1 * torch.stack(total)).exp().sum()

    at = 0.3 * torch.randn(2 * K)
    torch.testing.assert_close(hessian(ours, at), hessian(theirs, at), rtol=1e-9, atol=1e-9)


def test_impossible_states_have_no_curvature() -> None:
    """Moves and a first state that are ruled out, by minus infinity or nearly so."""
    moves = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    first = torch.tensor([1.0, 0.0, 0.0])
    emission = torch.randn(T, 1, K)

    def evidence(x: Tensor, nothing: float, every: bool) -> Tensor:
        matrix = (moves.log() + x).clamp_min(nothing)
        initial = first.log().clamp_min(nothing)
        chains = Potentials(initial[None], matrix[None, None], emission * x.sum())
        return every_path(chains, 0).logsumexp(0) if every else chain_log_evidence(chains)[0]

    at = torch.randn(K, K)
    truth = hessian(functools.partial(evidence, nothing=-1e30, every=True), at)
    for nothing in (-1e30, -torch.inf):
        found = hessian(functools.partial(evidence, nothing=nothing, every=False), at)
        torch.testing.assert_close(found, truth)


def test_the_most_probable_path_has_the_curvature_of_its_potentials() -> None:
    chains = random_chains(1, 1, None).detach()

    def best(x: Tensor, every: bool) -> Tensor:
        initial, emission = chains.initial * x.exp(), chains.emission * x.square()
        moved = Potentials(initial, chains.transition, emission)
        if every:
            return torch.stack([every_path(moved, r).max() for r in range(R)]).prod()
        return chain_log_evidence(moved, maximum=True).prod()

    at = torch.randn(())
    torch.testing.assert_close(
        hessian(lambda x: best(x, False), at), hessian(lambda x: best(x, True), at)
    )


def test_hessian_of_a_model() -> None:
    """Of the log likelihood in the parameters, by differences of 1e-5 of the exact gradient."""

    def model(x: Tensor) -> None:
        stay = pyro.param("stay", torch.tensor(0.8), constraint=dist.constraints.unit_interval)
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        moves = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
        chain = dist.DiscreteHMM(torch.zeros(2), moves.log(), dist.Normal(locs, 1.0 + stay))
        pyro.sample("x", chain, obs=x)

    x = torch.randn(40)
    with sheltered(0, x):
        plan = build_plan(model, prepare((x,), {}), "mle")

        def log_likelihood(v: Tensor) -> Tensor:
            return LogEvidence.of(plan)({"stay": v[0], "locs": v[1:]})

        at, step = torch.tensor([0.7, -0.5, 1.2]), 1e-5
        found = hessian(log_likelihood, at)
        for i, unit in enumerate(torch.eye(3)):
            sides = [(at + s * step * unit).requires_grad_() for s in (1.0, -1.0)]
            up, down = (torch.autograd.grad(log_likelihood(side), side)[0] for side in sides)
            torch.testing.assert_close(found[i], (up - down) / (2 * step), rtol=1e-6, atol=1e-6)
