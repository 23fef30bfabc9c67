"""Models of one family each: data, priors and updates that the M-step must find."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from tests.inference import brute_force
from tests.inference.brute_force import Free
from tests.inference.examples import Example

N, K = 24, 2
Sites = Callable[[], tuple[Tensor, ...]]
Emission = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A mixture: how its parameters are declared, how they enter, and what data look like."""

    sites: Sites
    emission: Emission
    data: Tensor
    conjugate: bool = True  # closed form for MAP too
    order: tuple[tuple[str, ...], ...] = ()  # blocks of an ECM step; none: all at once

    def model(self, x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((K,), 2.0)))
        values = self.sites()
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", self.emission(z, *values), obs=x)


def draws(distribution: Any, seed: int = 3) -> Tensor:
    """Data of length N, from a distribution of batch shape () or (N,)."""
    with torch.random.fork_rng(), brute_force.float64():
        torch.manual_seed(seed)
        shape = () if distribution.batch_shape else (N,)
        value = torch.as_tensor(distribution.sample(shape))
    return value.double()


def simplices(levels: int) -> Sites:
    return lambda: (
        pyro.sample("probs", dist.Dirichlet(torch.full((levels,), 1.7)).expand([K]).to_event(1)),
    )


def real(name: str, *shape: int) -> Tensor:
    start = torch.linspace(-0.5, 0.5, torch.Size(shape).numel()).reshape(shape)
    return torch.as_tensor(pyro.param(name, start.double()))


def positive(name: str, *shape: int) -> Tensor:
    start = torch.linspace(0.8, 1.3, torch.Size(shape).numel()).reshape(shape)
    return torch.as_tensor(pyro.param(name, start.double(), constraint=constraints.positive))


def unit(name: str, *shape: int) -> Tensor:
    return torch.as_tensor(
        pyro.sample(name, dist.Beta(2.0, 3.0).expand(shape).to_event(len(shape)))
    )


def rates(name: str, *shape: int) -> Tensor:
    prior = dist.Gamma(2.5, 1.5).expand(shape).to_event(len(shape))
    return torch.as_tensor(pyro.sample(name, prior))


def free_locs() -> Tensor:
    return real("locs", K)


def normal_gamma() -> tuple[Tensor, ...]:
    with pyro.plate("components", K):
        precisions = pyro.sample("precisions", dist.Gamma(2.5, 1.5))
        locs = pyro.sample("locs", dist.Normal(0.3, (0.4 * precisions).rsqrt()))
    return locs, precisions


def independent_normal_gamma() -> tuple[Tensor, ...]:
    with pyro.plate("components", K):
        precisions = pyro.sample("precisions", dist.Gamma(2.5, 1.5))
        locs = pyro.sample("locs", dist.Normal(0.3, 1.2))
    return locs, precisions


def inverse_gamma() -> tuple[Tensor, ...]:
    with pyro.plate("components", K):
        variances = pyro.sample("variances", dist.InverseGamma(3.0, 2.0))
    return free_locs(), variances


def normal_wishart() -> tuple[Tensor, ...]:
    with pyro.plate("components", K):
        precisions = pyro.sample("precisions", dist.Wishart(torch.tensor(4.5), torch.eye(2)))
        locs = pyro.sample(
            "locs", dist.MultivariateNormal(torch.zeros(2), precision_matrix=0.3 * precisions)
        )
    return locs, precisions


def wishart() -> tuple[Tensor, ...]:
    with pyro.plate("components", K):
        return (pyro.sample("precisions", dist.Wishart(torch.tensor(4.5), torch.eye(2))),)


def covariances() -> tuple[Tensor, ...]:
    start = torch.eye(2).repeat(K, 1, 1).double() * torch.tensor([1.0, 1.5]).reshape(K, 1, 1)
    return real("locs", K, 2), torch.as_tensor(
        pyro.param("covariances", start, constraint=constraints.positive_definite)
    )


def factors() -> tuple[Tensor, ...]:
    start = torch.eye(2).repeat(K, 1, 1).double() * torch.tensor([1.0, 1.5]).reshape(K, 1, 1)
    return real("locs", K, 2), torch.as_tensor(
        pyro.param("factors", start, constraint=constraints.lower_cholesky)
    )


COUNTS = draws(dist.Poisson(3.0))
REALS = draws(dist.Normal(0.4, 1.3))
POSITIVES = draws(dist.Gamma(2.0, 1.0))
KNOWN = torch.tensor([[1.0, 0.4], [0.4, 0.8]], dtype=torch.float64)
SPREAD = draws(
    dist.MultivariateNormal(
        torch.ones(2).double(), torch.where(torch.arange(N) < 9, 0.02, 4.0)[:, None, None] * KNOWN
    )
)
PAIRS = draws(dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.4], [0.4, 0.8]])))
LEVELS = draws(dist.Categorical(torch.tensor([0.1, 0.2, 0.3, 0.4]))).long()
BITS = draws(dist.Bernoulli(0.4))
EXPOSURE = draws(dist.Gamma(5.0, 5.0), seed=5)
SHOWN: Any = draws(dist.Bernoulli(0.8), seed=6).bool()
ECM_LOCS = (("weights",), ("locs",), ("precisions",))

CASES = {
    "categorical, probs": Case(simplices(4), lambda z, p: dist.Categorical(p[z]), LEVELS),
    "categorical, logits": Case(
        lambda: (real("logits", K, 4),), lambda z, a: dist.Categorical(logits=a[z]), LEVELS
    ),
    "one-hot": Case(
        simplices(4), lambda z, p: dist.OneHotCategorical(p[z]), torch.eye(4)[LEVELS].double()
    ),
    "multinomial": Case(
        simplices(3),
        lambda z, p: dist.Multinomial(6, p[z], validate_args=False),
        draws(dist.Multinomial(6, torch.tensor([0.2, 0.3, 0.5]))),
    ),
    "multinomial, logits": Case(
        lambda: (real("logits", K, 3),),
        lambda z, a: dist.Multinomial(6, logits=a[z]),
        draws(dist.Multinomial(6, torch.tensor([0.2, 0.3, 0.5]))),
    ),
    "bernoulli, probs": Case(lambda: (unit("p", K),), lambda z, p: dist.Bernoulli(p[z]), BITS),
    "bernoulli, logits": Case(
        lambda: (real("a", K),), lambda z, a: dist.Bernoulli(logits=a[z]), BITS
    ),
    "bernoulli, complement": Case(
        lambda: (unit("p", K),), lambda z, p: dist.Bernoulli(1.0 - p[z]), BITS
    ),
    "bernoulli, to_event": Case(
        lambda: (unit("p", K, 3),),
        lambda z, p: dist.Bernoulli(p[z]).to_event(1),
        draws(dist.Bernoulli(torch.tensor([0.3, 0.5, 0.7])).to_event(1).expand([N])),
    ),
    "binomial": Case(
        lambda: (unit("p", K),), lambda z, p: dist.Binomial(9, p[z]), COUNTS.clamp_max(9.0)
    ),
    "binomial, totals by row": Case(
        lambda: (unit("p", K),),
        lambda z, p: dist.Binomial(COUNTS + 2.0, p[z]),
        (COUNTS * 0.5).floor(),
    ),
    "binomial, logits": Case(
        lambda: (real("a", K),),
        lambda z, a: dist.Binomial(9, logits=a[z]),
        COUNTS.clamp_max(9.0),
    ),
    "geometric": Case(lambda: (unit("p", K),), lambda z, p: dist.Geometric(p[z]), COUNTS),
    "geometric, logits": Case(
        lambda: (real("a", K),), lambda z, a: dist.Geometric(logits=a[z]), COUNTS
    ),
    "poisson": Case(lambda: (rates("r", K),), lambda z, r: dist.Poisson(r[z]), COUNTS),
    "poisson, exposure": Case(
        lambda: (rates("r", K),), lambda z, r: dist.Poisson(r[z] * EXPOSURE), COUNTS
    ),
    "poisson, log-rate": Case(
        lambda: (real("a", K),), lambda z, a: dist.Poisson(a[z].exp()), COUNTS
    ),
    "poisson, log-rate and offset": Case(
        lambda: (real("a", K),),
        lambda z, a: dist.Poisson((a[z] + EXPOSURE.log()).exp()),
        COUNTS,
    ),
    "poisson, to_event": Case(
        lambda: (rates("r", K, 2),),
        lambda z, r: dist.Poisson(r[z]).to_event(1),
        torch.stack([COUNTS, COUNTS.flip(0) + 1.0], -1),
    ),
    "poisson, one rate scaled by known factors": Case(
        lambda: (rates("r"),), lambda z, r: dist.Poisson(r * (1.0 + 2.0 * z)), COUNTS
    ),
    "exponential": Case(lambda: (rates("r", K),), lambda z, r: dist.Exponential(r[z]), POSITIVES),
    "exponential, mean": Case(
        lambda: (positive("m", K),), lambda z, m: dist.Exponential(1.0 / m[z]), POSITIVES
    ),
    "gamma, known shape": Case(
        lambda: (rates("r", K),), lambda z, r: dist.Gamma(2.0, r[z]), POSITIVES
    ),
    "gamma, shapes by component": Case(
        lambda: (rates("r", K),),
        lambda z, r: dist.Gamma(torch.tensor([1.5, 4.0])[z], r[z]),
        POSITIVES,
    ),
    "normal, normal-gamma": Case(
        normal_gamma, lambda z, m, r: dist.Normal(m[z], r[z].rsqrt()), REALS
    ),
    "normal, independent priors": Case(
        independent_normal_gamma,
        lambda z, m, r: dist.Normal(m[z], r[z].rsqrt()),
        REALS,
        order=ECM_LOCS,
    ),
    "normal, variance": Case(inverse_gamma, lambda z, m, v: dist.Normal(m[z], v[z].sqrt()), REALS),
    "normal, scale": Case(
        lambda: (free_locs(), positive("s", K)), lambda z, m, s: dist.Normal(m[z], s[z]), REALS
    ),
    "normal, log-scale": Case(
        lambda: (free_locs(), real("s", K)), lambda z, m, s: dist.Normal(m[z], s[z].exp()), REALS
    ),
    "normal, known scale": Case(
        lambda: (pyro.sample("locs", dist.Normal(0.5, 2.0).expand([K]).to_event(1)),),
        lambda z, m: dist.Normal(m[z], 0.7),
        REALS,
    ),
    "normal, known scale by row": Case(
        lambda: (pyro.sample("locs", dist.Normal(0.5, 2.0).expand([K]).to_event(1)),),
        lambda z, m: dist.Normal(m[z], EXPOSURE),
        REALS,
    ),
    "normal, known location": Case(
        lambda: (rates("r", K),), lambda z, r: dist.Normal(0.2, r[z].rsqrt()), REALS
    ),
    "normal, offset by row": Case(
        normal_gamma, lambda z, m, r: dist.Normal(m[z] + EXPOSURE, r[z].rsqrt()), REALS
    ),
    "normal, tied scale": Case(
        lambda: (free_locs(), rates("precision")),
        lambda z, m, r: dist.Normal(m[z], r.rsqrt()),
        REALS,
    ),
    "normal, one location fixed": Case(
        lambda: (real("m"), rates("precision")),
        lambda z, m, r: dist.Normal(torch.stack([torch.zeros(()), m])[z], r.rsqrt()),
        REALS,
    ),
    "normal, to_event": Case(
        lambda: (real("locs", K, 2), rates("r", K, 2)),
        lambda z, m, r: dist.Normal(m[z], r[z].rsqrt()).to_event(1),
        PAIRS,
    ),
    "normal, spherical": Case(
        lambda: (real("locs", K, 2), rates("r", K)),
        lambda z, m, r: dist.Normal(m[z], r[z].rsqrt().unsqueeze(-1)).to_event(1),
        PAIRS,
    ),
    "normal, expand": Case(
        normal_gamma,
        lambda z, m, r: dist.Normal(m[z], r[z].rsqrt()).expand((*z.shape[:-1], N)),
        REALS,
    ),
    "normal, mask": Case(
        normal_gamma, lambda z, m, r: dist.Normal(m[z], r[z].rsqrt()).mask(SHOWN), REALS
    ),
    "lognormal": Case(
        normal_gamma, lambda z, m, r: dist.LogNormal(m[z], r[z].rsqrt()), POSITIVES
    ),
    "mvn, normal-wishart": Case(
        normal_wishart,
        lambda z, m, p: dist.MultivariateNormal(m[z], precision_matrix=p[z]),
        PAIRS,
    ),
    "mvn, covariance": Case(
        covariances,
        lambda z, m, c: dist.MultivariateNormal(m[z], covariance_matrix=c[z]),
        PAIRS,
    ),
    "mvn, scale_tril": Case(
        factors, lambda z, m, f: dist.MultivariateNormal(m[z], scale_tril=f[z]), PAIRS
    ),
    "scaled covariance, inverse gamma": Case(
        lambda: (
            pyro.sample("v", dist.InverseGamma(2.0, 1.3).expand([K]).to_event(1)),
        ),
        lambda z, v: dist.MultivariateNormal(torch.ones(2), v[z][..., None, None] * KNOWN),
        SPREAD,
    ),
    "scaled precision, gamma": Case(
        lambda: (rates("tau", K),),
        lambda z, t: dist.MultivariateNormal(
            torch.ones(2), precision_matrix=t[z][..., None, None] * KNOWN
        ),
        SPREAD,
    ),
    "scaled factor of a covariance": Case(
        lambda: (positive("s", K),),
        lambda z, s: dist.MultivariateNormal(
            torch.ones(2), scale_tril=s[z][..., None, None] * torch.linalg.cholesky(KNOWN)
        ),
        SPREAD,
    ),
    "mvn, wishart and known location": Case(
        wishart,
        lambda z, p: dist.MultivariateNormal(torch.zeros(2), precision_matrix=p[z]),
        PAIRS,
    ),
    "mvn, known covariance": Case(
        lambda: (
            pyro.sample(
                "locs",
                dist.MultivariateNormal(torch.ones(2), 2.0 * torch.eye(2)).expand([K]).to_event(1),
            ),
        ),
        lambda z, m: dist.MultivariateNormal(m[z], torch.tensor([[1.0, 0.3], [0.3, 0.6]])),
        PAIRS,
    ),
    "mvn, known covariance, normal prior": Case(
        lambda: (pyro.sample("locs", dist.Normal(0.2, 2.0).expand([K, 2]).to_event(2)),),
        lambda z, m: dist.MultivariateNormal(m[z], torch.tensor([[1.0, 0.3], [0.3, 0.6]])),
        PAIRS,
    ),
    "mvn, tied": Case(
        lambda: (
            real("locs", K, 2),
            pyro.sample("precision", dist.Wishart(torch.tensor(4.5), torch.eye(2))),
        ),
        lambda z, m, p: dist.MultivariateNormal(m[z], precision_matrix=p),
        PAIRS,
    ),
}  # fmt: skip


def closed_form(em: EM, *args: Any) -> dict[str, str]:
    """The M-step of every parameter, as ``explain`` tells it."""
    plan = em.explain(*args)
    rows = plan[plan["role"].str.startswith("parameter")]
    return dict(zip(rows["site"], rows["M-step"], strict=True))


def numerical_update(
    model: Callable[..., None],
    params: dict[str, Tensor],
    objective: str,
    order: tuple[tuple[str, ...], ...],
    *args: Any,
) -> dict[str, Tensor]:
    """The M-step by a search that knows nothing but the model's own log_prob."""
    weights = brute_force.rows(model, params, *args).weights
    supports = brute_force.supports(model, params, *args)
    current = dict(params)
    for block in order or (tuple(params),):
        rest = {name: value for name, value in current.items() if name not in block}

        def q(free: dict[str, Tensor], rest: dict[str, Tensor] = rest) -> Tensor:
            return brute_force.expected_rows(
                model, weights, {**rest, **free}, *args, objective=objective
            )

        free = Free(
            {name: supports[name] for name in block}, {name: current[name] for name in block}
        )
        current.update(brute_force.maximise(q, free))
    return current


def assert_update(
    model: Callable[..., None],
    objective: str,
    order: tuple[tuple[str, ...], ...],
    *args: Any,
    seed: int = 1,
    invariant: bool = False,
) -> None:
    params = Example("case", model, args).params(seed)
    em = EM(model, objective)
    found = em.m_step(em.e_step(params, *args))
    truth = numerical_update(model, params, objective, order, *args)
    for name, value in truth.items():
        if name == "logits" or invariant:  # known up to a constant
            value, found[name] = value.log_softmax(-1), found[name].log_softmax(-1)
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


def assert_stationary(
    model: Callable[..., None], params: dict[str, Tensor], *args: Any, tolerance: float = 1e-6
) -> None:
    """The gradient of the log posterior, in free reals, against the size of its terms."""
    supports = brute_force.supports(model, params, *args)

    def log_posterior(at: dict[str, Tensor]) -> Tensor:
        evidence = brute_force.rows(model, at, *args).log_evidence
        return evidence + brute_force.log_prior(model, at, *args)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient = brute_force.free_gradient(log_posterior, params, supports)
    size = 1.0 + abs(float(log_posterior(params)))
    assert float(gradient.abs().max()) <= tolerance * size
