"""The kinds of start: random centres, agglomeration, draws from the priors."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.cluster.hierarchy
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.initialisation import clustering
from ember.inference.initialisation.clustering import cluster, standardise
from ember.inference.initialisation.prior_draws import draw_from_priors
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan
from ember.models import bernoulli_mixture, gaussian_mixture
from tests.inference.catalogue import CASES, Case, case_id, model_of
from tests.inference.examples import EXAMPLES


def clouds(rows: int = 90) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([[0.0, 0.0], [7.0, 1.0], [2.0, 9.0]], dtype=torch.float64)
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return centres[torch.arange(rows) % 3] + noise


def same_partition(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one[:, None] == one, two[:, None] == two)


def test_agglomeration_is_ward_s() -> None:
    x = clouds()
    tree = scipy.cluster.hierarchy.linkage(x.numpy(), "ward")
    expected = torch.from_numpy(scipy.cluster.hierarchy.fcluster(tree, 3, "maxclust"))
    assert same_partition(cluster(x, 3, "hierarchical"), expected)  # clouds far apart
    assert same_partition(expected, torch.arange(90) % 3)


def test_agglomeration_of_a_sample_labels_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "WARD_ROWS", 30)
    assert same_partition(cluster(clouds(300), 3, "hierarchical"), torch.arange(300) % 3)


def test_a_hierarchical_start_needs_no_luck() -> None:
    x = clouds()
    one, two = (EM(gaussian_mixture, init="hierarchical", seed=s) for s in (1, 2))
    left, right = one.initialise(x, components=3), two.initialise(x, components=3)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def test_points_are_rows_no_two_alike() -> None:
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [5.0, 5.0], [0.0, 9.0]])
    for seed in range(10):
        torch.manual_seed(seed)
        labels = cluster(x.double(), 3, "points")
        assert same_partition(labels, torch.tensor([0, 0, 0, 1, 2]))
    few = cluster(torch.zeros(4, 1, dtype=torch.float64), 3, "points")  # fewer points than states
    assert few.tolist() == [0] * 4


def test_every_row_goes_to_its_nearest_point(monkeypatch: pytest.MonkeyPatch) -> None:
    x, chosen = clouds(), []
    draw = clustering._points

    def remembered(*args: Any) -> Any:
        chosen.append(draw(*args))
        return chosen[-1]

    monkeypatch.setattr(clustering, "_points", remembered)
    labels = cluster(x, 4, "points")
    points = torch.from_numpy(chosen[0])
    distances = torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist")
    assert bool((distances.min(0).values == 0).all())  # rows of the data
    assert torch.equal(distances.argmin(1), labels)


def test_standardised_columns_may_be_missing_or_constant() -> None:
    x = torch.tensor([[1.0, 5.0, torch.nan], [3.0, 5.0, 2.0], [5.0, 5.0, 4.0]])
    found = standardise(x)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-6, rtol=0.0)
    assert bool(found.isfinite().all())
    assert found[:, 1].tolist() == [0.0] * 3


@pytest.mark.parametrize("init", ["points", "hierarchical", "prior", "sticky"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_model_starts_in_every_way(case: Case, init: str) -> None:
    _, x, options = case
    em = EM(model_of(case), init=init, seed=1, max_iter=30)
    start = em.initialise(x, **options)
    assert all(bool(value.isfinite().all()) for value in start.values())
    again = em.initialise(x, **options)
    torch.testing.assert_close(start, again, rtol=1e-12, atol=0)
    assert torch.isfinite(torch.tensor(em.e_step(start, x, **options).objective))


@pytest.mark.parametrize("init", ["points", "hierarchical"])
@pytest.mark.parametrize("name", ["tree", "factorial", "global_and_local", "labelled"])
def test_latents_without_data_of_their_own_start_at_random(name: str, init: str) -> None:
    example = EXAMPLES[name]
    start = EM(example.model, init=init, seed=2).initialise(*example.args, **example.kwargs)
    assert all(bool(value.isfinite().all()) for value in start.values())


def test_draws_have_the_moments_of_the_priors() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([6.0, 2.0])))
        with pyro.plate("components", 2):
            rates = pyro.sample("rates", dist.Gamma(torch.tensor([4.0, 9.0]), 2.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rates[z]), obs=x)

    x = torch.tensor([1.0, 3.0, 5.0])
    with sheltered(0):
        plan = build_plan(model, prepare((x,), {}))
        draws = [draw_from_priors(plan) for _ in range(600)]
    rates = torch.stack([draw["rates"] for draw in draws])
    torch.testing.assert_close(rates.mean(0), torch.tensor([2.0, 4.5]).double(), atol=0.2, rtol=0)
    torch.testing.assert_close(rates.var(0), torch.tensor([1.0, 2.25]).double(), atol=0.4, rtol=0)
    weights = torch.stack([draw["weights"] for draw in draws])
    assert weights.mean(0).tolist() == pytest.approx([0.75, 0.25], abs=0.03)


def improper(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Poisson(rate * (1.0 + z)), obs=x)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tied_mixture", "parameter 'weights' is a pyro.param statement, which has no prior"),
        ("improper", "parameter 'rate' has an improper prior"),
    ],
)
def test_a_prior_that_cannot_be_drawn_from(name: str, message: str) -> None:
    model = improper if name == "improper" else EXAMPLES[name].model
    args = (torch.tensor([1.0, 4.0, 2.0]),) if name == "improper" else EXAMPLES[name].args
    with pytest.raises(ValueError, match=f"init='prior' draws .* but {message}; choose another"):
        EM(model, init="prior", restarts=2).fit(*args)


def test_an_unknown_kind_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'kmeans', 'points', 'random', 'hierarchical', 'prior'"):
        EM(bernoulli_mixture, init="furthest")
