"""Starts at which the model cannot be evaluated: set aside, or refused in one sentence."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.iteration.restarts.starting_points import GIVEN


def correlated(x: Tensor, spread: float = 0.1) -> None:
    """A covariance that is positive definite only while the correlation is below one."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    r = pyro.sample("r", dist.Normal(0.0, spread))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.MultivariateNormal(torch.zeros(2), 9.0 * torch.eye(2)))
    one = torch.ones(())
    covariance = torch.stack([torch.stack([one, r]), torch.stack([r, one])])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], covariance), obs=x)


def unmixed(x: Tensor) -> None:
    """Without latents: starts are run one after another."""
    r = pyro.sample("r", dist.Normal(0.0, 1.0))
    covariance = torch.where(r > 1.5, -1.0, 1.0) * torch.eye(2)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.MultivariateNormal(r * torch.ones(2), covariance), obs=x)


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    x[:20] += 3.0
    return x


@pytest.mark.parametrize(("model", "x"), [(correlated, rows()), (unmixed, rows() - 2.0)])
def test_a_start_where_the_model_fails_is_set_aside(model: Any, x: Tensor) -> None:
    bad = {"r": torch.tensor(2.0)}
    fit = EM(model, init=bad, restarts=4, seed=0).fit(x)
    objectives = fit.starts.objectives
    assert fit.starts.kinds[0] == GIVEN
    assert objectives[0] == -torch.inf
    assert not fit.starts.carried[0]
    assert torch.isfinite(objectives[1:]).all()
    alone = EM(model, seed=0).fit(x)
    assert fit.log_posterior == pytest.approx(alone.log_posterior, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"restarts": 3}, {"anneal": (0.5,)}])
def test_where_no_start_is_possible_one_sentence_says_why(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every start shall be the given one.
    kinds = "ember.inference.iteration.restarts.starting_points.start_kinds"
    monkeypatch.setattr(kinds, lambda init, count, _: [init] * count)
    with pytest.raises(ValueError, match=r"LinAlgError.*line.*covariance.*init=.*constraint") as e:
        EM(correlated, init={"r": torch.tensor(2.0)}, seed=0, **options).fit(rows())
    assert "\n" not in str(e.value)
    assert "Trace Shapes" not in str(e.value)


@pytest.mark.thorough
def test_draws_from_a_prior_that_allows_too_much_leave_the_others() -> None:
    """Most draws of this prior are no correlation; neither are most random parameters."""
    fit = EM(correlated, init="prior", restarts=6, seed=0).fit(rows(), spread=3.0)
    assert fit.converged
    assert 0 < len(fit.starts) < 6


def test_a_failure_of_the_users_own_start_is_not_hidden() -> None:
    def init(x: Tensor) -> dict[str, Tensor]:
        raise RuntimeError("my own mistake")

    with pytest.raises(RuntimeError, match="my own mistake"):
        EM(correlated, init=init, restarts=3, seed=0).fit(rows())
