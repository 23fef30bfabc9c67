"""Distributions that hide a latent: DiscreteHMM and MixtureSameFamily written by a user."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from ember.inference import EM, SVI, Fit
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan
from ember.models import hidden_markov_gaussian, hidden_markov_poisson

T, K = 12, 2
GENERATOR = torch.Generator().manual_seed(3)
X = torch.where(torch.arange(T) % 5 < 2, 4.0, 0.0).double()
X = X + torch.randn(T, generator=GENERATOR, dtype=torch.float64)
SLOPES = torch.stack([torch.ones(T), torch.arange(T) / T], -1).double()


def chain_parameters() -> tuple[Tensor, Tensor]:
    initial = pyro.sample("initial", dist.Dirichlet(torch.full((K,), 1.5)))
    with pyro.plate("from", K):
        transition = pyro.sample("transition", dist.Dirichlet(torch.full((K,), 1.5)))
    return initial.log(), transition.log()


def state_locs() -> Tensor:
    with pyro.plate("states", K):
        locs: Tensor = pyro.sample("locs", dist.Normal(0.0, 10.0))
    return locs


def discrete_hmm(x: Tensor) -> None:
    initial, transition = chain_parameters()
    pyro.sample("x", dist.DiscreteHMM(initial, transition, dist.Normal(state_locs(), 1.0)), obs=x)


def masked_hmm(x: Tensor) -> None:
    initial, transition = chain_parameters()
    seen = (torch.arange(len(x)) % 4 != 1).unsqueeze(-1)
    emission = dist.Normal(state_locs(), 1.0).mask(seen)
    pyro.sample("x", dist.DiscreteHMM(initial, transition, emission), obs=x)


def mixture_emissions(x: Tensor) -> None:
    initial, transition = chain_parameters()
    with pyro.plate("k", K):
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("states", K, dim=-2), pyro.plate("parts", 2, dim=-1):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    parts = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, 1.0))
    pyro.sample("x", dist.DiscreteHMM(initial, transition, parts), obs=x)


def regression_emissions(x: Tensor) -> None:
    initial, transition = chain_parameters()
    with pyro.plate("states", K):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        precisions = pyro.sample("precisions", dist.Gamma(2.0, 2.0))
    emission = dist.Normal(SLOPES @ slopes.T, precisions.rsqrt())
    pyro.sample("x", dist.DiscreteHMM(initial, transition, emission, duration=len(x)), obs=x)


def moves_vary(x: Tensor) -> None:
    initial = pyro.sample("initial", dist.Dirichlet(torch.full((K,), 1.5)))
    with pyro.plate("from", K):
        slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    logits = slope * SLOPES[:, 1:]
    transition = torch.stack([torch.zeros_like(logits), logits], -1)
    emission = dist.Normal(state_locs(), 1.0)
    pyro.sample("x", dist.DiscreteHMM(initial.log(), transition, emission), obs=x)


def mixture_of_chains(x: Tensor) -> None:
    x = x.reshape(3, 4)
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    initial = pyro.sample("initial", dist.Dirichlet(torch.full((K,), 1.5)))
    with pyro.plate("kinds", 2, dim=-2), pyro.plate("from", K, dim=-1):
        transition = pyro.sample("transition", dist.Dirichlet(torch.full((K,), 1.5)))
    locs = state_locs()
    with pyro.plate("sequences", 3):
        kind = pyro.sample("kind", dist.Categorical(weights))
        moves = transition[kind].unsqueeze(-3).log()
        whole = dist.DiscreteHMM(initial.log(), moves, dist.Normal(locs, 1.0), duration=4)
        pyro.sample("x", whole, obs=x)


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
    with pyro.plate("parts", 3):
        precisions = pyro.sample("precisions", dist.Gamma(2.0, 1.0))
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        parts = dist.Normal(locs, precisions.rsqrt())
        both = dist.MixtureSameFamily(dist.Categorical(weights), parts)
        names: Any = {"component": "kind"}
        pyro.sample("x", both, obs=x, infer=names)


class Case(NamedTuple):
    model: Callable[[Tensor], None]
    latents: dict[str, tuple[int, ...]]
    numerical: tuple[str, ...] = ()


CASES = {
    case.model.__name__: case
    for case in (
        Case(discrete_hmm, {"state": (T,)}),
        Case(masked_hmm, {"state": (T,)}),
        Case(mixture_emissions, {"state": (T,), "component": (T,)}),
        Case(regression_emissions, {"state": (T,)}),
        Case(moves_vary, {"state": (T,)}, ("slope",)),
        Case(mixture_of_chains, {"kind": (3,), "state": (3, 4)}),
        Case(mixture, {"kind": (T,)}),
    )
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def pyro_log_likelihood(model: Callable[..., None], params: dict[str, Tensor]) -> float:
    """Pyro's own value: the distributions sum over what they hide."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    given = poutine.block(poutine.condition(model, leaves), hide=list(params))
    elbo = TraceEnum_ELBO(strict_enumeration_warning=False, max_plate_nesting=2)
    loss: Any = elbo.differentiable_loss(config_enumerate(given), lambda *args: None, X)
    return -float(loss.detach())


@each_case
def test_fit_of_a_hidden_latent(case: Case) -> None:
    em = EM(case.model, seed=0)
    how = dict(em.explain(X)[["site", "M-step"]].to_numpy().tolist())
    fit = em.fit(X)
    assert fit.converged
    for name in fit.params:
        assert how[name] == ("numerical" if name in case.numerical else "closed form")
    assert fit.log_likelihood == pytest.approx(pyro_log_likelihood(case.model, fit.params), 1e-10)
    assert bool((fit.history.diff() >= -1e-9 * fit.history.abs().max()).all())
    with sheltered(0):
        reference = build_plan(case.model, prepare((X,), {}), probing=False)
        theirs = float(LogEvidence.of(reference)(fit.params))
    assert fit.log_likelihood == pytest.approx(theirs, rel=1e-11)
    drawn = fit.sample(4, seed=0)
    for name, shape in case.latents.items():
        assert fit.posterior(name).probs.shape[:-1] == shape
        assert name in drawn


@each_case
def test_gradient_is_zero_at_the_optimum(case: Case) -> None:
    fit = EM(case.model, seed=0, tol=1e-12, max_iter=3000).fit(X)
    free = {
        name: p.to_unconstrained(fit.params[name]).requires_grad_()
        for name, p in fit.plan.structure.parameters.items()
    }
    params = {n: fit.plan.structure.parameters[n].to_constrained(v) for n, v in free.items()}
    with sheltered(0):
        objective = LogEvidence.of(fit.plan)(params) + fit.plan.prior.log_prob(params)
    for gradient in torch.autograd.grad(objective, list(free.values())):
        assert float(gradient.abs().max()) < 1e-4


def unrolled(x: Tensor) -> None:
    initial, transition = chain_parameters()
    locs = state_locs()
    state = None
    for t in pyro.markov(range(len(x))):
        logits = initial if state is None else transition[state]
        state = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))
        pyro.sample(f"x_{t}", dist.Normal(locs[state], 1.0), obs=x[t])


def at_once(x: Tensor) -> None:
    initial, transition = chain_parameters()
    stay = torch.eye(K).log().unsqueeze(0)
    moves = torch.cat([stay, transition.expand(len(x) - 1, -1, -1)])
    pyro.sample("x", dist.DiscreteHMM(initial, moves, dist.Normal(state_locs(), 1.0)), obs=x)


def test_unrolled_and_vectorised_chains_agree() -> None:
    start = EM(unrolled, seed=0).initialise(X)  # a given start fixes the order of the states
    one, two = (EM(model, init=start, tol=1e-12).fit(X) for model in (unrolled, at_once))
    assert one.log_posterior == pytest.approx(two.log_posterior, rel=1e-12)
    torch.testing.assert_close(two.posterior("state").probs, one.posterior("z").probs)
    assert torch.equal(two.predict(), one.predict())
    torch.testing.assert_close(two.posterior_pairs("state"), one.posterior_pairs("z"))
    drawn = one.sample(3, seed=0)
    assert drawn["z"].shape == two.sample(3, seed=0)["state"].shape == (3, T)


def test_missing_steps_drop_out() -> None:
    fit = EM(masked_hmm, seed=0).fit(X)
    initial, transition = fit.params["initial"], fit.params["transition"]
    density = torch.distributions.Normal(fit.params["locs"], 1.0).log_prob(X.unsqueeze(-1)).exp()
    now = initial
    for t in range(T):
        now = now @ transition
        now = now * density[t] if t % 4 != 1 else now
    assert fit.log_likelihood == pytest.approx(float(now.sum().log()), rel=1e-12)


def test_forecasts_add_up_to_the_log_likelihood() -> None:
    x = torch.stack([X, X.flip(0)]).unsqueeze(-1)
    fit = EM(hidden_markov_gaussian, seed=0).fit(x, states=2)
    ahead = fit.forecast("x")
    assert ahead.batch_shape == (2, T + 1)
    densities = ahead.log_prob(torch.cat([x, x[:, :1]], 1))[:, :T]
    torch.testing.assert_close(densities.sum(1), fit.log_prob())
    states = fit.forecast("state").probs
    last = fit.posterior("state").probs[:, -1] @ fit.params["transition"]
    torch.testing.assert_close(states[:, -1], last)


def by_hand(initial: Tensor, moves: Tensor, density: Tensor) -> Tensor:
    """Each step's state given all data before it; ``DiscreteHMM`` moves once before it emits."""
    now, ahead = initial, []
    for move, seen in zip(moves, density, strict=True):
        now = now @ move
        ahead.append(now)
        now = now * seen / (now * seen).sum()
    return torch.stack(ahead)


def test_forecasts_of_emissions_that_are_mixtures() -> None:
    start = {
        "weights": torch.tensor([[0.3, 0.7], [0.6, 0.4]]),
        "locs": torch.tensor([[-1.0, 0.5], [3.0, 5.0]]),
    }
    fit = EM(mixture_emissions, seed=0, init=start).fit(X)
    weights, locs = fit.params["weights"], fit.params["locs"]
    parts = torch.distributions.Normal(locs, 1.0)
    density = (weights * parts.log_prob(X[:, None, None]).exp()).sum(-1)
    moves = fit.params["transition"].expand(T, K, K)
    states = by_hand(fit.params["initial"], moves, density)
    ahead = fit.forecast("x")
    assert ahead.batch_shape == (T + 1,)
    densities = ahead.log_prob(torch.cat([X, X[:1]]))[:T]
    torch.testing.assert_close(densities, (states * density).sum(-1).log())
    assert float(densities.sum()) == pytest.approx(fit.log_likelihood, rel=1e-12)
    mean = (states[:, :, None] * weights * locs).sum((-2, -1))
    square = (states[:, :, None] * weights * (locs.square() + 1.0)).sum((-2, -1))
    torch.testing.assert_close(ahead.mean[:T], mean)
    torch.testing.assert_close(ahead.variance[:T], square - mean.square())
    below = (states[:, :, None] * weights * parts.cdf(X[:, None, None])).sum((-2, -1))
    torch.testing.assert_close(ahead.cdf(torch.cat([X, X[:1]]))[:T], below)
    draws = ahead.sample(torch.Size([20_000]))
    assert draws.shape == (20_000, T + 1)
    torch.testing.assert_close(draws.mean(0), ahead.mean, atol=0.1, rtol=0.0)


def test_forecasts_where_moves_vary_say_what_is_not_known() -> None:
    fit = EM(moves_vary, seed=0).fit(X)
    logits = fit.params["slope"] * SLOPES[:, 1:]
    moves = torch.stack([torch.zeros_like(logits), logits], -1).softmax(-1)
    density = torch.distributions.Normal(fit.params["locs"], 1.0).log_prob(X[:, None]).exp()
    truth = by_hand(fit.params["initial"], moves, density)
    with pytest.warns(RuntimeWarning, match="moves of site 'state' vary in time.*last entry"):
        states = fit.forecast("state").probs
    torch.testing.assert_close(states[:T], truth)
    with pytest.warns(RuntimeWarning, match="vary in time"):
        data = fit.forecast("x")
    assert float(data.log_prob(torch.cat([X, X[:1]]))[:T].sum()) == pytest.approx(
        fit.log_likelihood, rel=1e-12
    )
    # The way out: a last step that is missing has a forecast of its own.
    gone = torch.where(torch.arange(T) == T - 1, torch.nan, X)
    with pytest.warns(RuntimeWarning, match="vary in time"):
        again = fit.forecast("state", gone).probs
    torch.testing.assert_close(again[T - 1], truth[T - 1])


def test_pairs_have_the_marginals_of_states() -> None:
    x = torch.stack([X, X.flip(0)]).unsqueeze(-1)
    fit = EM(hidden_markov_gaussian, seed=0).fit(x, states=2)
    pairs, states = fit.posterior_pairs("state"), fit.posterior("state").probs
    torch.testing.assert_close(pairs.sum(-1), states[:, :-1])
    torch.testing.assert_close(pairs.sum(-2), states[:, 1:])


def test_a_chain_of_one_state_is_a_chain() -> None:
    """Each step is as the others; past the end of a sequence there are no pairs."""
    x = torch.tensor([[0, 1, 7], [9, 8, -1]])
    fit = EM(hidden_markov_poisson, objective="mle").fit(x, states=1, lengths=[3, 2])
    ahead = fit.forecast("x")
    assert ahead.batch_shape == (2, 4)
    torch.testing.assert_close(ahead.mean, torch.full((2, 4), 5.0, dtype=torch.float64))
    assert (fit.forecast("state").probs == 1).all()
    assert fit.posterior_pairs("state")[..., 0, 0].tolist() == [[1, 1], [1, 0]]
    single = EM(hidden_markov_poisson, objective="mle").fit(x[0], states=1)
    densities = single.forecast("x").log_prob(torch.tensor([0.0, 1.0, 7.0, 0.0]))[:3]
    assert float(densities.sum()) == pytest.approx(single.log_likelihood)
    assert single.posterior_pairs("state").shape == (2, 1, 1)


def test_what_is_no_chain_says_so() -> None:
    fit = EM(mixture, seed=0).fit(X)
    for ask in (fit.forecast, fit.posterior_pairs):
        with pytest.raises(ValueError, match="'kind' is not the state of a hidden Markov chain"):
            ask("kind")
    chain = EM(regression_emissions, seed=0).fit(X)
    with pytest.raises(ValueError, match="vary in time"):
        chain.forecast("x")
    assert chain.forecast("state").probs.shape == (T + 1, K)


def test_draws_follow_the_chain() -> None:
    x = torch.stack([X, X.flip(0)]).repeat(20, 1).unsqueeze(-1)
    fit = EM(hidden_markov_gaussian, seed=0).fit(x, states=2)
    drawn = fit.sample(4000, seed=1)
    states = drawn["state"]
    for k in range(K):
        share = float((states[:, 0] == k).double().mean())
        assert share == pytest.approx(float(fit.params["initial"][k]), abs=0.03)
        mean = float(drawn["x"][states == k].mean())
        assert mean == pytest.approx(float(fit.params["locs"][k, 0]), abs=0.05)
        for j in range(K):
            moves = (states[:, 3] == k) & (states[:, 4] == j)
            share = float(moves.double().mean() / (states[:, 3] == k).double().mean())
            assert share == pytest.approx(float(fit.params["transition"][k, j]), abs=0.04)


def test_name_of_the_hidden_latent_must_be_free() -> None:
    def model(x: Tensor) -> None:
        locs = state_locs()
        both = dist.MixtureSameFamily(dist.Categorical(torch.ones(K)), dist.Normal(locs, 1.0))
        with pyro.plate("rows", len(x)):
            names: Any = {"component": "locs"}
            pyro.sample("x", both, obs=x, infer=names)

    with pytest.raises(ValueError, match=r"names its latent by infer=.*no other site"):
        EM(model).fit(X)


def stationary_fit() -> Fit:
    counts = torch.tensor([13, 14, 8, 10, 16, 26, 32, 27, 18, 32, 36, 24, 22, 23, 22, 18, 25, 21.0])
    return EM(hidden_markov_poisson, seed=0, tol=1e-12).fit(counts, states=2, stationary=True)


def test_stationary_start() -> None:
    fit = stationary_fit()
    transition = fit.params["transition"]
    assert "initial" not in fit.params
    assert bool((fit.history.diff() >= -1e-9 * fit.history.abs().max()).all())
    start = fit.forecast("state").probs[0]
    torch.testing.assert_close(start @ transition, start)


def test_sticky_prior_lengthens_stays() -> None:
    fits = [
        EM(hidden_markov_gaussian, seed=0).fit(
            X.unsqueeze(-1), states=2, prior={"transition": 1.5 + weight * torch.eye(2)}
        )
        for weight in (0.0, 20.0)
    ]
    loose, sticky = (fit.params["transition"].diagonal().min() for fit in fits)
    assert float(sticky) > float(loose) + 0.1


def test_svi_of_a_chain_reaches_the_mode_of_em() -> None:
    fit = EM(discrete_hmm, seed=0, tol=1e-12).fit(X)
    other = SVI(discrete_hmm, guide="delta", steps=500, seed=0).fit(X)
    assert other.log_posterior == pytest.approx(fit.log_posterior, abs=1e-2)
