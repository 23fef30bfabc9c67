"""Classification EM: k-means as its special case, its objective by brute force."""

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.shelter import sheltered
from ember.models import gaussian_mixture, hidden_markov_poisson
from tests.inference.brute_force import enumerate_latents, float64, log_prior
from tests.inference.examples import EXAMPLES

LOG_2PI = math.log(2.0 * math.pi)


def points(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = 2.5 * torch.randn(4, 2, generator=generator, dtype=torch.float64)
    which = torch.randint(4, (150,), generator=generator)
    return centres[which] + torch.randn(150, 2, generator=generator, dtype=torch.float64)


def centres_only(x: Tensor, components: int) -> None:
    """Equal weights, one known variance: only the locations are estimated."""
    locs = pyro.param("locs", torch.zeros(components, x.shape[1]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.full((components,), 1.0 / components)))
        pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x)


def common_variance(x: Tensor, components: int) -> None:
    """The same with the variance estimated, which does not change who is nearest to whom."""
    locs = pyro.param("locs", torch.zeros(components, x.shape[1]))
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.full((components,), 1.0 / components)))
        pyro.sample("x", dist.Normal(locs[z], precision.rsqrt()).to_event(1), obs=x)


def lloyd(x: Any, centres: Any) -> tuple[Any, Any, list[float]]:
    """Lloyd's algorithm: centres, labels, and the inertia before each move of the centres."""
    inertia: list[float] = []
    while True:
        distances = ((x[:, None] - centres[None]) ** 2).sum(-1)
        labels = distances.argmin(1)
        inertia.append(float(distances.min(1).sum()))
        moved = np.stack([x[labels == k].mean(0) for k in range(len(centres))])
        if np.array_equal(moved, centres):
            return centres, labels, inertia
        centres = moved


@pytest.mark.parametrize("model", [centres_only, common_variance])
@pytest.mark.parametrize("seed", range(4))
def test_spherical_equal_components_are_k_means(model: Any, seed: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = points(seed)
    start = {"locs": x[:4].clone(), "precision": torch.tensor(1.0)}
    if model is centres_only:
        del start["precision"]
    fit = EM(model, "mle", assignment="hard", init=start).fit(x, 4)
    assert fit.converged
    centres, labels, inertia = lloyd(x.numpy(), x[:4].numpy())
    np.testing.assert_allclose(fit.params["locs"].numpy(), centres, rtol=1e-12)
    assert (fit.predict().numpy() == labels).all()
    rival = cluster.KMeans(4, init=x[:4].numpy(), n_init=1, algorithm="lloyd", tol=0.0)
    rival.fit(x.numpy())
    np.testing.assert_allclose(fit.params["locs"].numpy(), rival.cluster_centers_, rtol=1e-10)
    assert (fit.predict().numpy() == rival.labels_).all()
    n = x.numel()
    if model is centres_only:  # every step, not only the last
        objective = [-0.5 * (each + n * LOG_2PI) - len(x) * math.log(4) for each in inertia]
        assert fit.history.tolist()[: len(objective)] == pytest.approx(objective, rel=1e-12)
    else:
        variance = rival.inertia_ / n
        best = -0.5 * n * (math.log(variance) + LOG_2PI + 1.0) - len(x) * math.log(4)
        assert float(fit.history[-1]) == pytest.approx(best, rel=1e-10)
        assert float(fit.params["precision"]) == pytest.approx(1.0 / variance, rel=1e-10)


FEW = ["mixture", "nested_plates", "factorial", "chain", "tree", "labelled_by_masks", "experts"]


@pytest.mark.parametrize("name", FEW)
def test_the_objective_is_the_best_joint_value(name: str) -> None:
    example = EXAMPLES[name]
    params = example.params(5)
    em = EM(example.model, assignment="hard")
    statistics = em.e_step(params, *example.args, **example.kwargs)
    with float64():
        every = enumerate_latents(example.model, params, *example.args, **example.kwargs)
        prior = float(log_prior(example.model, params, *example.args, **example.kwargs))
    assert statistics.log_likelihood == pytest.approx(float(every.log_joint.max()), rel=1e-10)
    assert statistics.log_prior == pytest.approx(prior, rel=1e-10)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a hard assignment may empty a state
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_classification_objective_never_falls(name: str) -> None:
    example = EXAMPLES[name]
    em = EM(example.model, assignment="hard", init=example.params(2), max_iter=60)
    fit = em.fit(*example.args, **example.kwargs)
    assert "fell" not in fit.stop_reason
    assert bool((fit.history.diff() >= 0).all())
    with sheltered():
        again = LogEvidence.of(fit.plan).statistics(fit.params, maximum=True)
    assert again.objective == pytest.approx(float(fit.history[-1]), rel=1e-9)
    soft = EM(example.model).e_step(fit.params, *example.args, **example.kwargs)
    assert fit.log_likelihood == pytest.approx(soft.log_likelihood, rel=1e-10)
    assert fit.log_likelihood >= again.log_likelihood - 1e-9 * (1.0 + abs(again.log_likelihood))


def test_a_row_counts_as_often_as_its_weight() -> None:
    x = points(1)[:30]
    counts = torch.arange(30) % 3 + 1
    start = EM(gaussian_mixture, seed=0).initialise(x, components=2)
    em = EM(gaussian_mixture, assignment="hard", init=start)
    one = em.fit(x, components=2, frequency=counts.double())
    two = em.fit(x.repeat_interleave(counts, 0), components=2)
    assert float(one.history[-1]) == pytest.approx(float(two.history[-1]), rel=1e-10)
    for name, value in one.params.items():
        torch.testing.assert_close(two.params[name], value, rtol=1e-8, atol=1e-10)


def test_the_best_start_is_best_by_the_classification_objective() -> None:
    x = points(2)
    em = EM(gaussian_mixture, assignment="hard", restarts=6, seed=0)
    fit = em.fit(x, components=4)
    assert fit.converged
    carried = torch.tensor(fit.starts.carried)
    assert float(fit.history[-1]) == float(fit.starts.objectives[carried].max())


def best_path(x: list[float], params: dict[str, Tensor]) -> tuple[float, tuple[int, ...]]:
    """The most probable path of one sequence, among all of them."""
    initial, transition = params["initial"].log(), params["transition"].log()
    density = dist.Poisson(params["rates"].reshape(-1)).log_prob(
        torch.tensor(x).double().unsqueeze(-1)
    )
    best: tuple[float, tuple[int, ...]] = (-math.inf, ())
    for path in itertools.product(range(2), repeat=len(x)):
        moves = sum(float(transition[i, j]) for i, j in itertools.pairwise(path))
        seen = sum(float(density[t, k]) for t, k in enumerate(path))
        best = max(best, (float(initial[path[0]]) + moves + seen, path))
    return best


@pytest.mark.parametrize("lengths", [None, [8, 5, 1]], ids=["whole", "ragged"])
def test_a_chain_ends_at_the_counts_of_its_best_paths(lengths: list[int] | None) -> None:
    x = torch.tensor(
        [[1.0, 0, 2, 9, 8, 10, 1, 0], [8, 0, 2, 9, 1, 3, 3, 3], [2, 5, 5, 5, 7, 1, 1, 4]]
    )
    options: dict[str, Any] = {"states": 2}
    if lengths is not None:
        options["lengths"] = torch.tensor(lengths)
    fit = EM(hidden_markov_poisson, "mle", assignment="hard", seed=0).fit(x, **options)
    assert fit.converged
    found = [best_path(x[i, :n].tolist(), fit.params) for i, n in enumerate(lengths or [8] * 3)]
    assert float(fit.history[-1]) == pytest.approx(sum(value for value, _ in found), rel=1e-10)
    moves, starts, sums = torch.zeros(2, 2), torch.zeros(2), torch.zeros(2, 2)
    for i, (_, path) in enumerate(found):
        starts[path[0]] += 1.0
        for before, after in itertools.pairwise(path):
            moves[before, after] += 1.0
        for t, state in enumerate(path):
            sums[state] += torch.tensor([float(x[i, t]), 1.0])
    expected = {
        "initial": starts / starts.sum(),
        "transition": moves / moves.sum(1, keepdim=True),
        "rates": (sums[:, 0] / sums[:, 1]).reshape(fit.params["rates"].shape),
    }
    for name, value in expected.items():
        torch.testing.assert_close(fit.params[name], value.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assignment": "firm"}, "assignment='firm' is unknown; choose one of 'soft', 'hard'"),
        ({"assignment": "hard", "accelerate": "squarem"}, "does not go with assignment='hard'"),
        ({"assignment": "hard", "escape": "split-merge"}, "does not go with assignment='hard'"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EM(gaussian_mixture, **options)
