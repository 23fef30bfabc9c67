"""Latents of several kinds in one model: each integrated in its own way, where they do not meet."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions.constraints import positive

from ember.inference import EM, SVI
from ember.inference.inputs.shelter import sheltered

EXACTLY: Any = {"integrate": "gaussian"}
ON_NODES: Any = {"integrate": "quadrature"}
CONJUGATE: Any = {"integrate": "conjugate"}
GROUPS = torch.arange(24) % 4
GENERATOR = torch.Generator().manual_seed(3)
Y = torch.randn(24, generator=GENERATOR) + 1.5 * torch.randn(4, generator=GENERATOR)[GROUPS]
COUNTS = torch.poisson(torch.randn(30, generator=GENERATOR).exp(), generator=GENERATOR)
X = torch.randn(40, generator=GENERATOR) / torch.rand(40, generator=GENERATOR).sqrt()


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


def tails(x: Tensor) -> None:
    """Student's t: the weights of the rows have conjugate priors."""
    middle = pyro.param("middle", torch.tensor(0.0))
    size = pyro.param("size", torch.tensor(1.0), constraint=positive)
    with pyro.plate("points", len(x)):
        w = pyro.sample("w", dist.Gamma(2.0, 2.0), infer=CONJUGATE)
        pyro.sample("x", dist.Normal(middle, size / w.sqrt()), obs=x)


def both(y: Tensor, counts: Tensor) -> None:
    effects(y)
    rates(counts)


def every(y: Tensor, counts: Tensor, x: Tensor) -> None:
    both(y, counts)
    tails(x)


def test_latents_of_three_kinds_are_integrated_as_if_alone() -> None:
    alone = {
        "u": EM(effects, "mle", seed=0).fit(Y),
        "rate": EM(rates, "mle", seed=0).fit(COUNTS),
        "w": EM(tails, "mle", seed=0).fit(X),
    }
    fit = EM(every, "mle", seed=0).fit(Y, COUNTS, X)
    total = sum(each.log_likelihood for each in alone.values())
    assert fit.log_likelihood == pytest.approx(total, abs=1e-6)
    for each in alone.values():
        for name, value in each.params.items():
            assert fit.params[name].numpy() == pytest.approx(value.numpy(), abs=2e-4)
    roles = fit.plan.structure
    assert [*roles.gaussian] == ["u"]
    assert [*roles.nodes] == ["rate"]
    assert [*roles.conjugate] == ["w"]
    for name, by_itself in alone.items():
        found, wanted = fit.posterior(name), by_itself.posterior(name)
        assert found.mean.numpy() == pytest.approx(wanted.mean.numpy(), abs=2e-4)
        assert found.stddev.numpy() == pytest.approx(wanted.stddev.numpy(), abs=2e-4)
        assert fit.predict()[name].numpy() == pytest.approx(wanted.mean.numpy(), abs=2e-4)
    drawn = fit.latent_samples(4000, seed=0)
    for name in alone:
        found = fit.posterior(name)
        off = (drawn[name].mean(0) - found.mean) / found.stddev
        assert float(off.abs().max()) < 0.1
    shown = str(EM(every).explain(Y, COUNTS, X))
    assert "integrated exactly (Gaussian" in shown
    assert "integrated exactly (conjugate: Gamma)" in shown
    assert "integrated on 61 nodes" in shown


def test_reading_the_model_again_gives_the_same_roles() -> None:
    fit = EM(every, "mle", seed=0).fit(Y, COUNTS, X)
    with sheltered():
        again = fit.plan_for((Y, COUNTS, X), {})
    assert [*again.structure.gaussian] == ["u"]
    assert [*again.structure.conjugate] == ["w"]
    assert [*again.structure.nodes] == ["rate"]
    wishes = fit.plan.structure.wishes
    assert (wishes["u"], wishes["w"]) == ("gaussian", "conjugate")
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
    with pytest.raises(ValueError, match="'w', which is integrated out; hide"):
        SVI(tails, guide=AutoNormal(tails), steps=1).fit(X)
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


def weighed(y: Tensor) -> None:
    """Normal data that read a latent on nodes, and one with a conjugate prior."""
    with pyro.plate("rows", len(y)):
        v = pyro.sample("v", dist.Normal(0.0, 1.0), infer=ON_NODES)
        u = pyro.sample("u", dist.Gamma(2.0, 2.0), infer=CONJUGATE)
        pyro.sample("y", dist.Normal(v, u.rsqrt()), obs=y)


@pytest.mark.parametrize(
    ("model", "site", "remedy"),
    [
        (meeting, "y", "Put both on nodes .integrate={'u': 'quadrature'}"),
        (below, "v", "Put both on nodes .integrate={'u': 'quadrature'}"),
        (weighed, "y", "Estimate one as a parameter .integrate={'u': None}"),
    ],
)
def test_where_they_meet_is_refused_in_a_sentence(model: Any, site: str, remedy: str) -> None:
    message = f"site '{site}' meets the latent 'u', which is integrated exactly, and the latent 'v'"
    with pytest.raises(ValueError, match=message + ", which is on nodes.*" + remedy):
        EM(model).fit(Y)


def shifted(y: Tensor) -> None:
    """Normal data that read a Gaussian latent, and one with a conjugate prior."""
    with pyro.plate("groups", 4):
        v = pyro.sample("v", dist.Normal(0.0, 1.0), infer=EXACTLY)
    with pyro.plate("rows", len(y)):
        u = pyro.sample("u", dist.Gamma(2.0, 2.0), infer=CONJUGATE)
        pyro.sample("y", dist.Normal(v[GROUPS], u.rsqrt()), obs=y)


def test_a_gaussian_latent_and_one_with_a_conjugate_prior_in_one_site_are_refused() -> None:
    with pytest.raises(ValueError, match=r"site 'y' reads the latents 'u' and 'v'.*parameter"):
        EM(shifted).fit(Y)


def test_hard_assignment_is_refused_of_either() -> None:
    with pytest.raises(ValueError, match=r"assignment='hard'.*'rate' is continuous"):
        EM(both, assignment="hard").fit(Y, COUNTS)
    with pytest.raises(ValueError, match=r"anneal=.*'u' is continuous"):
        EM(effects, anneal=(0.5,)).fit(Y)
