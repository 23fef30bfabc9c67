"""Latents of several kinds in one model: each integrated in its own way, where they do not meet."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions.constraints import positive

from ember.inference import EM, SVI

EXACTLY: Any = {"integrate": "gaussian"}
ON_NODES: Any = {"integrate": "quadrature"}
GROUPS = torch.arange(24) % 4
GENERATOR = torch.Generator().manual_seed(3)
Y = torch.randn(24, generator=GENERATOR) + 1.5 * torch.randn(4, generator=GENERATOR)[GROUPS]
COUNTS = torch.poisson(torch.randn(30, generator=GENERATOR).exp(), generator=GENERATOR)


def effects(y: Tensor) -> None:
    """A linear mixed model: the effects are Gaussian."""
    mean = pyro.param("mean", torch.tensor(0.0))
    spread = pyro.param("spread", torch.tensor(1.0), constraint=positive)
    noise = pyro.param("noise", torch.tensor(1.0), constraint=positive)
    with pyro.plate("groups", 4):
        u = pyro.sample("u", dist.Normal(0.0, spread), infer=EXACTLY)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean + u[GROUPS], noise), obs=y)


def rates(counts: Tensor) -> None:
    """Counts with a rate of each driver: the logarithm is on nodes."""
    location = pyro.param("location", torch.tensor(0.0))
    width = pyro.param("width", torch.tensor(1.0), constraint=positive)
    with pyro.plate("drivers", len(counts)):
        rate = pyro.sample("rate", dist.Normal(location, width), infer=ON_NODES)
        pyro.sample("counts", dist.Poisson(rate.exp()), obs=counts)


def both(y: Tensor, counts: Tensor) -> None:
    effects(y)
    rates(counts)


def test_a_gaussian_latent_and_one_on_nodes_are_integrated_as_if_alone() -> None:
    one, other = EM(effects, "mle", seed=0).fit(Y), EM(rates, "mle", seed=0).fit(COUNTS)
    fit = EM(both, "mle", seed=0).fit(Y, COUNTS)
    assert fit.log_likelihood == pytest.approx(one.log_likelihood + other.log_likelihood, abs=1e-6)
    for name, value in {**one.params, **other.params}.items():
        assert fit.params[name].numpy() == pytest.approx(value.numpy(), abs=1e-4)
    roles = fit.plan.structure
    assert [*roles.gaussian] == ["u"]
    assert [*roles.nodes] == ["rate"]
    for alone, name in ((one, "u"), (other, "rate")):
        found, wanted = fit.posterior(name), alone.posterior(name)
        assert found.mean.numpy() == pytest.approx(wanted.mean.numpy(), abs=1e-4)
        assert found.stddev.numpy() == pytest.approx(wanted.stddev.numpy(), abs=1e-4)
        assert fit.predict()[name].numpy() == pytest.approx(wanted.mean.numpy(), abs=1e-4)
    drawn = fit.latent_samples(4000, seed=0)
    for name in ("u", "rate"):
        found = fit.posterior(name)
        off = (drawn[name].mean(0) - found.mean) / found.stddev
        assert float(off.abs().max()) < 0.1
    assert "integrated exactly (Gaussian" in str(EM(both).explain(Y, COUNTS))
    assert "integrated on 61 nodes" in str(EM(both).explain(Y, COUNTS))


def test_reading_the_model_again_gives_the_same_roles() -> None:
    fit = EM(both, "mle", seed=0).fit(Y, COUNTS)
    again = fit.plan_for((Y, COUNTS), {})
    assert [*again.structure.gaussian] == ["u"]
    assert [*again.structure.nodes] == ["rate"]
    wishes = fit.plan.structure.wishes
    assert wishes["u"] == "gaussian"
    assert wishes["rate"] == fit.plan.structure.nodes["rate"].rule


def test_a_guide_covers_both_or_either() -> None:
    em = EM(both, seed=0).fit(Y, COUNTS)
    options: dict[str, Any] = {"steps": 3, "seed": 0, "init": em.params}
    fit = SVI(both, **options).fit(Y, COUNTS)
    assert fit.guide is not None
    assert set(fit.guide.covered) == {"u", "rate"}
    assert set(fit.params) == set(em.params)
    assert set(fit.posterior_samples(2)) == {*em.params, "u", "rate"}
    assert float(fit.history[0]) < em.log_posterior
    for asked, left in (({"u": "gaussian"}, "rate"), ({"rate": "quadrature"}, "u")):
        part = SVI(both, integrate=asked, **options).fit(Y, COUNTS)
        assert part.guide is not None
        assert part.guide.covered == (left,)
    exact = SVI(both, integrate={"u": "gaussian", "rate": "quadrature"}, **options).fit(Y, COUNTS)
    assert float(exact.history[0]) == pytest.approx(em.log_posterior, abs=1e-6)


def meeting(y: Tensor) -> None:
    """Normal data that read a Gaussian latent and one on nodes."""
    noise = pyro.param("noise", torch.tensor(1.0), constraint=positive)
    with pyro.plate("rows", len(y)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=EXACTLY)
        v = pyro.sample("v", dist.Normal(0.0, 1.0), infer=ON_NODES)
        pyro.sample("y", dist.Normal(u + v, noise), obs=y)


def below(y: Tensor) -> None:
    """A latent on nodes whose prior has a Gaussian latent."""
    with pyro.plate("rows", len(y)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=EXACTLY)
        v = pyro.sample("v", dist.Normal(u, 1.0), infer=ON_NODES)
        pyro.sample("y", dist.Poisson(v.exp()), obs=y.abs().round())


@pytest.mark.parametrize(("model", "site"), [(meeting, "y"), (below, "v")])
def test_where_they_meet_is_refused_in_a_sentence(model: Any, site: str) -> None:
    message = f"site '{site}' meets the Gaussian latent 'u' and the latent 'v', which is on nodes"
    with pytest.raises(ValueError, match=message + ".*integrate={'u': 'quadrature'}"):
        EM(model).fit(Y)


def test_hard_assignment_is_refused_of_either() -> None:
    with pytest.raises(ValueError, match=r"assignment='hard'.*'rate' is continuous"):
        EM(both, assignment="hard").fit(Y, COUNTS)
    with pytest.raises(ValueError, match=r"anneal=.*'u' is Gaussian"):
        EM(effects, anneal=(0.5,)).fit(Y)
