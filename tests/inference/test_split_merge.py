"""Split and merge: out of a known trap, for several families, and never down."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.split_merge import _candidates, _misfit, _posterior
from ember.inference.plan.building import build_plan
from ember.models import gaussian_mixture, hidden_markov_poisson, poisson_mixture
from tests.inference.examples import EXAMPLES

CENTRES = torch.tensor([[0.0, 0.0], [6.0, 0.0], [8.0, 2.5]], dtype=torch.float64)


def clouds() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(150, 2, generator=generator, dtype=torch.float64)
    return CENTRES[torch.arange(150) % 3] + 0.6 * noise


def gaussians(trapped: bool) -> dict[str, Tensor]:
    """Two centres in one cloud and one between two others, or one in each."""
    eye = torch.eye(2, dtype=torch.float64)
    bad = torch.tensor([[-0.5, 0.2], [0.5, -0.2], [7.0, 1.2]], dtype=torch.float64)
    return {
        "weights": torch.full((3,), 1.0 / 3.0, dtype=torch.float64),
        "locs": bad if trapped else CENTRES,
        "precisions": torch.stack([2.0 * eye, 2.0 * eye, 0.3 * eye]),
    }


def student_t(x: Tensor) -> None:
    """A family without a closed form; weights known.

    It is narrower than the clouds, so that two centres in one stay apart.
    """
    locs = pyro.param("locs", torch.zeros(3, dtype=torch.float64))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.full((3,), 1.0 / 3.0)))
        pyro.sample("x", dist.StudentT(5.0, locs[z], 0.3), obs=x)


def counts() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    rates = torch.tensor([[2.0, 2.0], [40.0, 2.0], [40.0, 30.0]], dtype=torch.float64)
    return torch.poisson(rates[torch.arange(120) % 3], generator=generator)


def rates(trapped: bool) -> dict[str, Tensor]:
    bad, good = [[1.5, 2.5], [2.5, 1.5], [40.0, 16.0]], [[2.0, 2.0], [40.0, 2.0], [40.0, 30.0]]
    return {
        "weights": torch.full((3,), 1.0 / 3.0),
        "rates": torch.tensor(bad if trapped else good),
    }


TRAPS: dict[str, tuple[Any, Tensor, dict[str, Any], dict[str, Tensor], dict[str, Tensor]]] = {
    "gaussian": (
        gaussian_mixture, clouds(), {"components": 3}, gaussians(True), gaussians(False),
    ),
    "poisson": (poisson_mixture, counts(), {"components": 3}, rates(True), rates(False)),
    "student": (
        student_t, clouds()[:, 0], {},
        {"locs": torch.tensor([-0.5, 0.5, 7.0])}, {"locs": torch.tensor([0.0, 6.0, 8.0])},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "objective"),
    [("gaussian", "map"), ("gaussian", "mle"), ("poisson", "map"), ("student", "mle")],
)
def test_it_leaves_the_trap(name: str, objective: str) -> None:
    model, x, options, bad, good = TRAPS[name]
    stuck = EM(model, objective, init=bad).fit(x, **options)
    optimum = EM(model, objective, init=good).fit(x, **options)
    assert stuck.log_posterior < optimum.log_posterior - 5.0
    em = EM(model, objective, init=bad, escape="split-merge", seed=0)
    fit = em.fit(x, **options)
    assert fit.converged
    assert fit.log_posterior == pytest.approx(optimum.log_posterior, rel=1e-7)
    assert bool((fit.history.diff() >= 0).all())
    assert float(fit.history[stuck.iterations]) == pytest.approx(stuck.log_posterior, rel=1e-12)
    assert len(fit.times) == len(fit.history)
    assert bool((fit.times.diff() >= 0).all())
    assert fit.evaluations > stuck.evaluations
    again = em.fit(x, **options)
    torch.testing.assert_close(again.history, fit.history, rtol=1e-12, atol=0)


def test_at_the_best_optimum_it_changes_nothing() -> None:
    model, x, options, _, good = TRAPS["gaussian"]
    plain = EM(model, init=good).fit(x, **options)
    fit = EM(model, init=good, escape="split-merge", seed=0).fit(x, **options)
    torch.testing.assert_close(fit.history, plain.history, rtol=1e-12, atol=0)
    torch.testing.assert_close(fit.params, plain.params, rtol=1e-9, atol=1e-12)
    assert fit.evaluations > plain.evaluations


def test_the_criteria_are_those_of_the_paper() -> None:
    x = clouds()
    params = {name: value.double() for name, value in gaussians(True).items()}
    counts = (torch.arange(150) % 2 + 1).double()
    with sheltered(0):
        plan = build_plan(
            gaussian_mixture, prepare((x,), {"components": 3, "frequency": counts}), "mle"
        )
        posterior, weight = _posterior(plan, params)
        misfit = _misfit(plan, params, posterior, weight)
        first = next(_candidates(plan, params))
    fn = torch.distributions.MultivariateNormal(
        params["locs"], precision_matrix=params["precisions"]
    )
    log_density = fn.log_prob(x[:, None])
    responsibilities = (log_density + params["weights"].log()).softmax(1)
    rows = torch.arange(150).repeat_interleave(counts.long())
    copies = responsibilities[rows]
    local = copies / copies.sum(0)
    divergence = torch.special.xlogy(local, local) - local * log_density[rows]
    torch.testing.assert_close(misfit, divergence.sum(0), rtol=1e-9, atol=1e-9)
    overlap = copies.T @ copies
    overlap.fill_diagonal_(-1.0)
    merged = set(torch.tensor(divmod(int(overlap.argmax()), 3)).tolist())
    assert set(first[:2]) == merged == {0, 1}
    assert first[2] == 2


def test_with_two_components_there_is_nothing_to_exchange() -> None:
    x = torch.tensor([0.0, 1.0, 0.0, 2.0, 9.0, 11.0, 8.0])
    fit = EM(poisson_mixture, escape="split-merge", seed=0).fit(x, components=2)
    plain = EM(poisson_mixture, seed=0).fit(x, components=2)
    torch.testing.assert_close(fit.history, plain.history, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["chain", "factorial", "nested_plates"])
def test_other_models_are_refused_before_any_work(name: str) -> None:
    example = EXAMPLES[name]
    plain = EM(example.model, escape="split-merge")
    with pytest.raises(ValueError, match="escape='split-merge' needs a plain mixture"):
        plain.fit(*example.args, **example.kwargs)


def test_the_steps_of_a_chain_are_named_once() -> None:
    with pytest.raises(ValueError, match=r"latent sites are \['state'\]"):
        EM(hidden_markov_poisson, escape="split-merge").fit(torch.ones(20), states=2)


def test_an_unknown_way_out() -> None:
    with pytest.raises(ValueError, match="escape='jump' is unknown; choose one of None"):
        EM(gaussian_mixture, escape="jump")
