"""Masks count as under Pyro's ``TraceEnum_ELBO``, on latents and on data alike."""

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ember.inference import EM
from tests.inference import pyro_evidence

X = torch.tensor([-2.0, 0.3, 1.4, -0.7, 2.2, 0.9], dtype=torch.float64)
SOME = torch.tensor([True, True, False, True, False, False])
OTHERS = torch.tensor([True, False, False, True, True, False])
MASKS: dict[str, Any] = {"all": True, "none": False, "some": SOME, "others": OTHERS}


def mixture(x: Tensor, latent: Any, data: Any, by: str) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(x)):
        if by == "dist.mask":
            z = pyro.sample("z", dist.Categorical(weights).mask(latent))
            pyro.sample("x", dist.Normal(locs[z], 1.0).mask(data), obs=x)
            return
        with poutine.mask(mask=latent):
            z = pyro.sample("z", dist.Categorical(weights))
        with poutine.mask(mask=data):
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


PARAMS = {
    "weights": torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64),
    "locs": torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64),
}


@pytest.mark.parametrize(
    ("latent", "data", "by"),
    [*itertools.product(MASKS, MASKS, ("poutine.mask", "dist.mask"))],
)
def test_a_mixture_under_every_mask(latent: str, data: str, by: str) -> None:
    args = (X, MASKS[latent], MASKS[data], by)
    truth = pyro_evidence.log_evidence(mixture, PARAMS, *args)
    stats = EM(mixture).e_step(PARAMS, *args)
    assert stats.log_likelihood == pytest.approx(truth, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("latent", "data"), [*itertools.product(MASKS, MASKS)])
def test_posteriors_of_masked_latents(latent: str, data: str) -> None:
    args = (X, MASKS[latent], MASKS[data], "poutine.mask")
    fit = EM(mixture, seed=0, tol=1e-4).fit(*args)
    truth = pyro_evidence.posteriors(mixture, fit.params, *args)["z"]
    torch.testing.assert_close(fit.posterior("z").probs, truth.expand(6, 3))
    assert fit.history[-1] == pytest.approx(
        pyro_evidence.log_evidence(mixture, fit.params, *args)
        + fit.log_posterior
        - fit.log_likelihood,
        rel=1e-10,
    )


def capture_recapture(history: Tensor) -> None:
    """Pyro's ``capture_recapture.py``, model 1: before its first capture an animal is alive."""
    survival = pyro.sample("survival", dist.Uniform(0.0, 1.0))
    capture = pyro.sample("capture", dist.Uniform(0.0, 1.0))
    with pyro.plate("animals", len(history)):
        alive = torch.ones(len(history))
        seen: Any = torch.zeros(len(history)).bool()
        for t in pyro.markov(range(history.shape[1])):
            with poutine.mask(mask=seen):
                probs = torch.where(seen, survival * alive, 1.0)
                alive = pyro.sample(f"alive_{t}", dist.Bernoulli(probs))
                pyro.sample(f"seen_{t}", dist.Bernoulli(capture * alive), obs=history[:, t])
            seen = seen | history[:, t].bool()


def test_survival_of_animals_that_are_masked_until_caught() -> None:
    # The likelihood by hand (Cormack, Jolly, Seber): phi p to each next capture, and the chance
    # chi_t = 1 - phi (1 - (1 - p) chi_(t + 1)) of never being seen again; maximised on a grid.
    text = "110110 100000 010110 001000 111010 000110 101000 011100 100100 010000 001011 110000"
    history = torch.tensor([[float(c) for c in row] for row in text.split()], dtype=torch.float64)
    grid = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    phi, p = torch.meshgrid(grid, grid, indexing="ij")
    chi = [torch.ones_like(phi)]
    for _ in range(5):
        chi.insert(0, 1.0 - phi + phi * (1.0 - p) * chi[0])
    total = torch.zeros_like(phi)
    for row in history.long().tolist():
        times = [t for t, seen in enumerate(row) if seen]
        first, last = times[0], times[-1]
        total += (last - first) * phi.log() + chi[last].log()
        for t in range(first + 1, last + 1):
            total += p.log() if row[t] else (1.0 - p).log()
    fit = EM(capture_recapture, "mle", seed=0).fit(history)
    best = int(total.argmax())
    assert float(fit.params["survival"]) == pytest.approx(float(phi.reshape(-1)[best]), abs=1e-3)
    assert float(fit.params["capture"]) == pytest.approx(float(p.reshape(-1)[best]), abs=1e-3)
    assert fit.log_likelihood == pytest.approx(float(total.max()), abs=1e-4)
    assert fit.log_likelihood == pytest.approx(
        pyro_evidence.log_evidence(capture_recapture, fit.params, history), rel=1e-12
    )


def ragged(y: Tensor, lengths: Any, mask_states: bool) -> None:
    initial = pyro.sample("initial", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("states", 2):
        transition = pyro.sample("transition", dist.Dirichlet(torch.full((2,), 2.0)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("sequences", len(y)):
        z: Any = None
        for t in pyro.markov(range(y.shape[1])):
            with poutine.mask(mask=t < lengths if mask_states else True):
                z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else transition[z]))
            with poutine.mask(mask=t < lengths):
                pyro.sample(f"y_{t}", dist.Normal(locs[z], 1.0), obs=y[:, t])


def test_sequences_of_different_lengths_by_mask() -> None:
    lengths = torch.tensor([2, 6, 3, 6])
    y = torch.randn(4, 6, dtype=torch.float64)
    fits = [EM(ragged, seed=0).fit(y, lengths, masked) for masked in (True, False)]
    truth = pyro_evidence.log_evidence(ragged, fits[0].params, y, lengths, True)
    assert fits[0].log_likelihood == pytest.approx(truth, rel=1e-12)
    assert fits[0].log_posterior == pytest.approx(fits[1].log_posterior, rel=1e-7)
    marginals = pyro_evidence.posteriors(ragged, fits[0].params, y, lengths, True)
    for t in range(6):
        there = lengths > t
        found = fits[0].posterior(f"z_{t}").probs
        torch.testing.assert_close(found[there], marginals[f"z_{t}"][there])


GROUPS = torch.tensor([True, False, True, True]).unsqueeze(-1)
CELLS = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()


def nested(x: Tensor, scale: float, groups: Any, members: Any, data: Any) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    probs = pyro.sample("probs", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2, 2]).to_event(2))
    with poutine.scale(scale=scale), pyro.plate("groups", 4, dim=-2):
        with poutine.mask(mask=groups):
            kind = pyro.sample("kind", dist.Categorical(weights))
        with pyro.plate("members", 3, dim=-1):
            with poutine.mask(mask=members):
                state = pyro.sample("state", dist.Bernoulli(probs[kind]))
            with poutine.mask(mask=data):
                pyro.sample("x", dist.Normal(locs[kind, state.long()], 1.0), obs=x)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_nested_plates_under_masks_and_scales(scale: float) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    params = {
        "weights": torch.tensor([0.25, 0.75], dtype=torch.float64),
        "probs": torch.tensor([0.25, 0.5], dtype=torch.float64),
        "locs": torch.tensor([[-1.0, 1.0], [0.0, 2.0]], dtype=torch.float64),
    }
    for masks in itertools.product((True, GROUPS), (True, GROUPS, CELLS), (False, GROUPS, CELLS)):
        truth = pyro_evidence.log_evidence(nested, params, x, scale, *masks, nesting=2)
        stats = EM(nested).e_step(params, x, scale, *masks)
        assert stats.log_likelihood == pytest.approx(truth, rel=1e-12, abs=1e-12)


def test_labels_known_in_part_cost_no_iterations() -> None:
    labels = (X > 0.5).long()

    def model(x: Tensor, labels: Tensor, shown: Any) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), obs=labels, obs_mask=shown)
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    everywhere = torch.ones(6).bool()
    assert EM(model, accelerate=None, seed=0).fit(X, labels, everywhere).iterations <= 3
    fit = EM(model, seed=0).fit(X, labels, SOME)
    truth = pyro_evidence.log_evidence(model, fit.params, X, labels, SOME)
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-12)
    assert fit.posterior("z").probs[SOME].argmax(-1).tolist() == labels[SOME].tolist()


def test_a_mask_that_another_latent_decides() -> None:
    def model(x: Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            switch: Any = pyro.sample("switch", dist.Bernoulli(0.25))
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.25, 0.75])).mask(switch == 1))
            with poutine.mask(mask=switch.bool()):
                w = pyro.sample("w", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(locs[z] + w, 1.0), obs=x)

    params = {"locs": torch.tensor([-1.0, 1.0], dtype=torch.float64)}
    truth = pyro_evidence.log_evidence(model, params, X)
    assert EM(model).e_step(params, X).log_likelihood == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("mask", [False, torch.tensor([True, False])])
def test_priors_under_masks_count_as_in_autodelta(mask: Any) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("parts", 2), poutine.mask(mask=mask):
            locs = pyro.sample("locs", dist.Normal(1.0, 0.5))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.25))
            pyro.sample("x", dist.Normal(locs[z.long()], 1.0), obs=x)

    fit = EM(model, seed=0).fit(X)
    one = torch.ones((), dtype=torch.float64)
    prior = dist.Normal(one, 0.5 * one).log_prob(fit.params["locs"]) * torch.as_tensor(mask)
    assert fit.log_posterior - fit.log_likelihood == pytest.approx(float(prior.sum()), abs=1e-10)


def test_components_of_a_masked_mixture_keep_their_shares() -> None:
    def model(x: Tensor, mask: Any) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
        parts = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, 1.0))
        with pyro.plate("rows", len(x)), poutine.mask(mask=mask):
            pyro.sample("x", parts, obs=x)

    fit = EM(model, seed=0).fit(X, SOME)
    truth = pyro_evidence.posteriors(mixture, fit.params, X, True, SOME, "poutine.mask")["z"]
    torch.testing.assert_close(fit.posterior("component").probs, truth.expand(6, 3))
