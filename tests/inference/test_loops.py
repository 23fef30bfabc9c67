"""Loops of ``pyro.markov``, read as chains: against brute force, DiscreteHMM and site by site."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import natural_parameters, values_of
from ember.inference.reading.matching.arguments import probe_values
from ember.inference.reading.structure import Structure
from tests.inference import brute_force

GENERATOR = torch.Generator().manual_seed(5)
TOLERANCE = 1e-9


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def bits(*shape: int) -> Tensor:
    return (torch.rand(*shape, generator=GENERATOR) < 0.5).double()


def moves(states: int) -> Tensor:
    rows = torch.ones(states, states) + torch.eye(states)
    found: Tensor = pyro.sample("transition", dist.Dirichlet(rows).to_event(1))
    return found


def centres(*shape: int) -> Tensor:
    found: Tensor = pyro.sample("locs", dist.Normal(0.0, 2.0).expand(shape).to_event(len(shape)))
    return found


def normal_chain(x: Tensor) -> None:
    transition, locs = moves(2), centres(2)
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], scale), obs=x[t])


def autoregression(x: Tensor) -> None:
    """The first step has another distribution, and the others depend on the data before them."""
    transition, slopes = moves(2), centres(2)
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        if t == 0:
            pyro.sample("x_0", dist.Cauchy(0.0, 1.0), obs=x[0])
        else:
            pyro.sample(f"x_{t}", dist.Normal(slopes[z] * x[t - 1], 1.0), obs=x[t])


def two_states_at_once(x: Tensor) -> None:
    """Data that depend on two neighbouring states."""
    transition, locs = moves(2), centres(2, 2)
    z: Any = None
    for t in pyro.markov(range(len(x))):
        before = z
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[0 if z is None else z]))
        loc = locs[0, z] if before is None else locs[before, z]
        pyro.sample(f"x_{t}", dist.Normal(loc, 1.0), obs=x[t])


def mixture_emissions(x: Tensor, y: Tensor) -> None:
    """Two kinds of data, one with a latent of its own at each step."""
    transition, locs = moves(2), centres(2, 2)
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)).expand([2]).to_event(1))
    rates = pyro.sample("rates", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(transition[z]))
        c = pyro.sample(f"c{t}", dist.Categorical(weights[z]))
        pyro.sample(f"x{t}", dist.Normal(locs[z, c], 0.5), obs=x[t])
        pyro.sample(f"y{t}", dist.Poisson(rates[z]), obs=y[t])


def tones(x: Tensor, lengths: Tensor) -> None:
    """Pyro's music model: a plate of tones in a plate of sequences of different lengths."""
    transition = moves(2)
    shape = [2, 2, x.shape[-1]]
    probs = pyro.sample("probs", dist.Beta(1.1, 1.9).expand(shape).to_event(3))
    keys = pyro.plate("keys", x.shape[-1], dim=-1)
    with pyro.plate("sequences", len(x), dim=-2):
        z: Any = 0
        y: Any = 0
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):  # type: ignore[call-overload]
                z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
                with keys as k:
                    y = pyro.sample(f"y_{t}", dist.Bernoulli(probs[z, y, k]), obs=x[:, t]).long()


def one_by_one(x: Tensor) -> None:
    """A loop for each sequence."""
    transition = moves(2)
    rates = pyro.sample("rates", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    for i in range(len(x)):
        z: Any = 0
        for t in pyro.markov(range(i + 2)):
            z = pyro.sample(f"z_{i}_{t}", dist.Categorical(transition[z]))
            pyro.sample(f"x_{i}_{t}", dist.Poisson(rates[z]), obs=x[i, t])


def clusters_of_sequences(x: Tensor) -> None:
    """A latent outside the loop."""
    transition, locs = moves(2), centres(2)
    with pyro.plate("sequences", len(x)):
        w = pyro.sample("w", dist.Categorical(torch.tensor([0.3, 0.7])))
        z: Any = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z] + w, 1.0), obs=x[:, t])


def moves_in_time(x: Tensor) -> None:
    """A transition and an effect of each step's own, drawn inside the loop."""
    shapes = pyro.sample("shapes", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    z: Any = None
    for t in pyro.markov(range(len(x))):
        p = pyro.sample(f"p_{t}", dist.Dirichlet(torch.ones(2)).expand([2]).to_event(1))
        z = pyro.sample(f"z_{t}", dist.Categorical(p[0] if z is None else p[z]))
        pyro.sample(f"x_{t}", dist.Gamma(shapes[z], 1.0 + t), obs=x[t])


def computed(x: Tensor) -> None:
    """Arguments that only the model can compute."""
    transition, locs = moves(2), centres(2)
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        pyro.sample(f"x_{t}", dist.Normal((locs[z] * t).sin() * locs[0], 1.0), obs=x[t])


def sometimes(x: Tensor, y: Tensor) -> None:
    """Some data at every second step only."""
    transition, locs = moves(2), centres(2)
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])
        if t % 2:
            pyro.sample(f"y_{t}", dist.Bernoulli(logits=locs[z]), obs=y[t])


def plates_by_step(x: Tensor) -> None:
    """A plate of its own at every step: sites of too many kinds to be stacked."""
    transition, locs = moves(2), centres(2)
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        with pyro.plate(f"rows_{t}", 2):
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def two_chains(x: Tensor) -> None:
    """A factorial model: no single chain, so it stays site by site."""
    transition, locs = moves(2), centres(2, 2)
    z: Any = 0
    w: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        w = pyro.sample(f"w_{t}", dist.Categorical(transition[w]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z, w], 1.0), obs=x[t])


Case = tuple[Callable[..., None], tuple[Tensor, ...], tuple[str, ...]]
CASES: list[Case] = [
    (normal_chain, (normal(5),), ("z",)),
    (autoregression, (normal(5),), ("z",)),
    (two_states_at_once, (normal(5),), ("z",)),
    (mixture_emissions, (normal(4), torch.tensor([1.0, 2.0, 0.0, 3.0]).double()), ("z", "c")),
    (tones, (bits(2, 3, 2), torch.tensor([3, 2])), ("z",)),
    (one_by_one, (torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0]]).double(),), ()),
    (clusters_of_sequences, (normal(2, 3),), ("w", "z")),
    (moves_in_time, (normal(4).exp(),), ("z",)),
    (computed, (normal(5),), ("z",)),
    (sometimes, (normal(4), bits(4)), ("z",)),
    (plates_by_step, (normal(6, 2),), ("z",)),
    (two_chains, (normal(3),), ("z", "w")),
]
each_case = pytest.mark.parametrize("case", CASES, ids=[case[0].__name__ for case in CASES])


def plan_of(model: Any, args: tuple[Any, ...]) -> tuple[Plan, dict[str, Tensor]]:
    """A plan, and parameters to look at it."""
    with sheltered():
        plan = build_plan(model, prepare(args, {}))
        return plan, probe_values(plan.structure, 7)


@each_case
def test_a_loop_is_read_as_a_chain(case: Case) -> None:
    model, args, _ = case
    plan, _ = plan_of(model, args)
    assert bool(plan.chains) == (model not in (two_chains, plates_by_step))
    assert len(plan.chains) == 0 or len(plan.structure.latent) < 3


@each_case
def test_log_evidence_and_its_gradient(case: Case) -> None:
    model, args, _ = case
    plan, params = plan_of(model, args)

    def truth(at: dict[str, Tensor]) -> Tensor:
        return brute_force.enumerate_latents(model, at, *args).log_evidence

    with sheltered():
        assert LogEvidence.of(plan).statistics(params).log_likelihood == pytest.approx(
            float(truth(params)), rel=1e-10
        )
        supports = brute_force.supports(model, params, *args)
        found = brute_force.free_gradient(LogEvidence.of(plan), params, supports)
        expected = brute_force.free_gradient(truth, params, supports)
    assert torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@each_case
def test_expected_log_joint_elsewhere(case: Case) -> None:
    model, args, _ = case
    plan, params = plan_of(model, args)
    weights = brute_force.enumerate_latents(model, params, *args).weights
    with sheltered():
        others = probe_values(plan.structure, 8)
        stats = LogEvidence.of(plan).statistics(params)
        found = [float(expected_log_joint(stats, p)) for p in (params, others)]
        truth = [
            float(brute_force.expected_log_joint(model, weights, p, *args))
            for p in (params, others)
        ]
    assert found[1] - found[0] == pytest.approx(truth[1] - truth[0], rel=TOLERANCE, abs=TOLERANCE)


@each_case
def test_answers_have_the_names_of_the_model(case: Case) -> None:
    model, args, latents = case
    fit = EM(model, seed=0).fit(*args)
    truth = brute_force.enumerate_latents(model, fit.params, *args)
    for name, values in truth.values.items():
        found = fit.posterior(name).probs
        own = truth.marginal(name)
        assert torch.allclose(found, own.reshape(found.shape), atol=1e-8)
        assert values.shape[1:].numel() * found.shape[-1] == found.numel()
    for name in latents:
        steps = [n for n in truth.values if n.rstrip("0123456789").rstrip("_") == name]
        assert fit.posterior(name).probs.dim() == fit.posterior(steps[-1]).probs.dim() + (
            len(steps) > 1
        )
    drawn, best = fit.sample(2, seed=0), fit.predict()
    assert not latents or set(latents) <= set(drawn)
    assert len(latents) == 1 or set(best) == set(latents or truth.values)


def test_a_loop_is_the_same_model_as_a_discrete_hmm() -> None:
    def other_way(x: Tensor) -> None:
        transition, locs = moves(2), centres(2)
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        emission = dist.Normal(locs.unsqueeze(-2), scale)
        # z_0 comes from row 0, so the state before it is 0.
        start = torch.tensor([0.0, -torch.inf])
        pyro.sample("x", dist.DiscreteHMM(start, transition.log(), emission), obs=x)

    x = torch.cat([normal(20), 4.0 + normal(20), normal(20)])
    one, two = EM(normal_chain, seed=0).fit(x), EM(other_way, seed=0).fit(x)
    assert one.log_posterior == pytest.approx(two.log_posterior, rel=1e-9)
    assert torch.equal(one.predict(), two.predict())
    assert torch.allclose(one.posterior_pairs("z"), two.posterior_pairs("state"), atol=1e-6)
    assert torch.allclose(one.forecast("z").probs, two.forecast("state").probs, atol=1e-6)
    ahead = one.forecast("x")
    assert torch.allclose(ahead.mean, two.forecast("x").mean, atol=1e-5)
    total = ahead.log_prob(torch.cat([x, x[:1]]))[:-1].sum()
    assert float(total) == pytest.approx(one.log_likelihood, rel=1e-9)


def test_a_long_loop_is_a_few_factors() -> None:
    x = torch.cat([normal(150), 5.0 + normal(150)])
    plan, params = plan_of(normal_chain, (x,))
    assert len(plan.factors) == 3
    table = EM(normal_chain).explain(x).set_index("site")
    assert list(table.index[-2:]) == ["z_0 ... z_299", "x_0 ... x_299"]
    assert table.loc["z_0 ... z_299", "E-step"] == "forward-backward over 2 states"
    with sheltered():
        assert (
            len(natural_parameters(plan, values_of(plan, params))) == 2
        )  # one of the chain, one of the data


def test_stacked_sites_are_of_the_distribution_that_the_model_names() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        moves = pyro.sample("moves", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        with pyro.plate("states", 2):
            precisions = pyro.sample("precisions", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
            locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        z = None
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(weights if z is None else moves[z]))
            fn = dist.MultivariateNormal(locs[z], precision_matrix=precisions[z])
            pyro.sample(f"x_{t}", fn, obs=x[t])

    table = EM(model).explain(torch.stack([normal(20), normal(20)], -1)).set_index("site")
    why = "conjugate: MultivariateNormal.precision_matrix with Wishart prior"
    assert table.loc["precisions", "why"] == why
    assert table.loc["x_0 ... x_19", "why"] == "sufficient statistics of MultivariateNormal"


def test_a_numerical_parameter_is_evaluated_once_for_all_steps() -> None:
    plan, params = plan_of(moves_in_time, (normal(6).exp(),))
    with sheltered():
        assert set(plan.opaque.factor_log_probs(params)) == {"x"}
        assert plan.opaque.factor_log_probs(params)["x"].shape == (2, 6)


def missing(x: Tensor, how: str, there: Any) -> None:
    """Data that are missing at some steps, said in three ways."""
    transition, locs = moves(2), centres(2)
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        fn = dist.Normal(locs[z], 1.0)
        if how == "nan":
            pyro.sample(f"x_{t}", fn, obs=torch.where(there[t], x[t], torch.nan))
        elif how == "none":
            pyro.sample(f"x_{t}", fn, obs=x[t] if there[t] else None)
        elif how == "obs_mask":
            pyro.sample(f"x_{t}", fn, obs=x[t], obs_mask=there[t])
        elif there[t]:
            pyro.sample(f"x_{t}", fn, obs=x[t])


@pytest.mark.parametrize("how", ["nan", "none", "obs_mask"])
def test_missing_data_of_a_loop(how: str) -> None:
    x, there = normal(6), torch.tensor([True, False, True, True, False, True])
    plan, params = plan_of(missing, (x, how, there))
    truth = brute_force.enumerate_latents(missing, params, x, "left out", there).log_evidence
    with sheltered():
        assert LogEvidence.of(plan).statistics(params).log_likelihood == pytest.approx(
            float(truth), rel=1e-10
        )
    fit = EM(missing, seed=0).fit(x, how, there)
    assert fit.predict().shape == fit.impute().shape == (6,)
    assert set(fit.sample(3, seed=0)) == {"z", "x"}
    assert not fit.sample(3, seed=0)["x"].isnan().any()


def test_data_that_depend_on_missing_data_are_refused() -> None:
    def model(x: Tensor) -> None:
        transition, locs = moves(2), centres(2)
        z: Any = 0
        before: Any = torch.tensor(0.0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
            fn = dist.Normal(locs[z] + before, 1.0)
            before = pyro.sample(f"x_{t}", fn, obs=None if t == 2 else x[t])

    with pytest.raises(ValueError, match="site 'x_3' depends on data that are missing"):
        EM(model).fit(normal(5))


def labelled(x: Tensor, labels: Tensor, known: Any, how: str) -> None:
    """A chain of which some states are known, said in two ways."""
    transition, locs = moves(3), centres(3)
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        fn = dist.Categorical(transition[z])
        if how == "obs_mask":
            z = pyro.sample(f"s_{t}", fn, obs=labels[t], obs_mask=known[t])
        else:
            z = pyro.sample(f"s_{t}", fn, obs=labels[t] if known[t] else None)
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])


@pytest.mark.parametrize("how", ["obs_mask", "obs"])
def test_a_partly_labelled_chain_is_one_chain(how: str) -> None:
    labels, known = torch.tensor([0, 2, 1, 1, 0, 2]), torch.tensor([1, 0, 0, 1, 1, 0]).bool()
    args = (3.0 * labels + normal(6), labels, known, how)
    plan, params = plan_of(labelled, args)
    truth = brute_force.enumerate_latents(labelled, params, *args).log_evidence
    with sheltered():
        assert LogEvidence.of(plan).statistics(params).log_likelihood == pytest.approx(
            float(truth), rel=1e-10
        )
    fit = EM(labelled, seed=0).fit(*args)  # a warning would be an error
    assert torch.equal(fit.predict()[known], labels[known])
    assert torch.equal(fit.posterior("s").probs[known].argmax(-1), labels[known])
    assert fit.posterior("s_3").probs[1] == pytest.approx(1.0)
    drawn = fit.sample(5, seed=0)
    assert {name: value.shape for name, value in drawn.items()} == {"s": (5, 6), "x": (5, 6)}


def test_a_start_numbers_its_states_as_the_labels_do() -> None:
    labels = torch.tensor([2, 0, 1]).repeat_interleave(40)
    known = torch.arange(120) % 40 < 2
    noise = torch.randn(120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.tensor([0.0, 16.0, 8.0])[labels] + noise
    fit = EM(labelled, seed=0).fit(x, labels, known, "obs_mask")
    assert torch.equal(fit.predict(), labels)


def test_too_many_latents_are_refused_by_name() -> None:
    def model(x: Tensor) -> None:
        transition, locs = moves(2), centres(2)
        z: Any = 0
        for t in range(len(x)):
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])

    with pytest.raises(ValueError, match=r"70 latent sites outside pyro.markov.*pyro.markov"):
        EM(model).fit(normal(70))


def test_a_site_outside_the_loop_of_its_latent_is_refused() -> None:
    def model(x: Tensor) -> None:
        transition, locs = moves(2), centres(2)
        z: Any = 0
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])
        pyro.sample("last", dist.Normal(locs[z], 1.0), obs=x[0])

    with pytest.raises(ValueError, match=r"site 'last' depends on a latent of a pyro.markov loop"):
        EM(model).fit(normal(4))


def three_plates(x: Tensor) -> None:
    """A chain beside a plate of its emissions: draws have dims that no plate uses."""
    start = pyro.sample("start", dist.Dirichlet(torch.ones(2) * 2.0))
    with pyro.plate("states", 2):
        moves = pyro.sample("moves", dist.Dirichlet(torch.ones(2) * 2.0))
    with pyro.plate("columns", 3, dim=-1), pyro.plate("levels", 2, dim=-2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    state = None
    for t in pyro.markov(range(len(x))):
        state = pyro.sample(f"z_{t}", dist.Categorical(start if state is None else moves[state]))
        with pyro.plate(f"columns_{t}", 3):
            pyro.sample(f"x_{t}", dist.Normal(Vindex(locs)[state, torch.arange(3)], 1.0), obs=x[t])


def test_many_data_sets_are_drawn_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    x[::3] += torch.tensor([4.0, -4.0, 8.0])
    fit = EM(three_plates, seed=0).fit(x)
    many = fit.sample(2500, seed=1)
    assert torch.equal(many["x"], fit.sample(2500, seed=1)["x"])
    assert many["z"].shape == (2500, 20)
    assert many["x"].shape == (2500, 20, 3)
    monkeypatch.setattr(Structure, "can_be_copied", False)
    one_by_one = fit.sample(300, seed=2)
    assert one_by_one["x"].shape == (300, 20, 3)
    for name in ("z", "x"):
        several, single = many[name].double(), one_by_one[name].double()
        error = (several.var(0) / 2500 + single.var(0) / 300).sqrt()
        assert bool(((several.mean(0) - single.mean(0)).abs() < 5.0 * error + 1e-9).all())
    # What is drawn together belongs together: the state decides on the row, and on the next state.
    locs = fit.params["locs"][many["z"]]
    rest = many["x"] - locs
    assert float(rest.mean().abs()) < 0.02
    assert float(rest.var()) == pytest.approx(1.0, abs=0.02)
    moved = torch.stack([many["z"][:, :-1].flatten(), many["z"][:, 1:].flatten()])
    counts = torch.zeros(2, 2).index_put((moved[0], moved[1]), torch.ones(()), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close(shares.double(), fit.params["moves"], atol=0.03, rtol=0.0)


def test_draws_that_meet_are_made_one_by_one() -> None:
    """A mean over what was drawn would be one over all copies."""

    def model(y: Tensor, w: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-3.0, 3.0]))
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
        rows = locs[z].unsqueeze(-1) + torch.zeros(4)
        y = pyro.sample("y", dist.Normal(rows, 1.0).to_event(1), obs=y)
        pyro.sample("w", dist.Normal(y.mean(), 0.1), obs=w)

    y = torch.tensor([2.0, 3.5, 3.0, 2.5], dtype=torch.float64)
    fit = EM(model, "mle", init={"locs": torch.tensor([-3.0, 3.0])}).fit(y, y.mean())
    drawn = fit.sample(400, seed=0)
    rest = drawn["w"] - drawn["y"].mean(-1)
    assert float(rest.std()) == pytest.approx(0.1, abs=0.02)
