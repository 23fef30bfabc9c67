"""Models with latents that have conjugate priors, each with its marginal density in closed form."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

Params = dict[str, Tensor]
N = 60
OTHER_MARK: Any = {"integrate": "scale-mixture"}
MARK: Any = {"integrate": "conjugate"}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _t(seed: int, df: float, *shape: int) -> Tensor:
    """Draws of Student's t."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weight = dist.Gamma(torch.tensor(df / 2).double(), df / 2).sample(shape[:1])
    return _normals(seed, *shape) * weight.rsqrt().reshape(-1, *(1,) * (len(shape) - 1))


X = torch.cat([torch.ones(N, 1, dtype=torch.float64), _normals(0, N, 2)], 1)
LINE = X @ torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
COUNTS = torch.poisson(4.0 * torch.exp(0.6 * _normals(1, N)), generator=_generator(2))


@dataclass
class Case:
    """A model, its data, and the log density of every row with the latent integrated out."""

    model: Callable[..., None]
    args: tuple[Any, ...]
    marginal: Callable[..., Tensor]
    numerical: tuple[str, ...] = ()
    latent: str = "u"
    kwargs: dict[str, Any] = field(default_factory=dict)


def regression(y: Tensor, X: Tensor, df: float | None = None) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(X.shape[1]), 10.0).to_event(1))
    s2 = pyro.sample("s2", dist.InverseGamma(2.0, 1.0))
    nu = pyro.sample("nu", dist.Gamma(2.0, 0.1)) if df is None else torch.tensor(df).to(y)
    with pyro.plate("rows", len(y)):
        u = pyro.sample("u", dist.Gamma(nu / 2, nu / 2), infer=MARK)
        pyro.sample("y", dist.Normal(X @ b, (s2 / u).sqrt()), obs=y)


def _regression(p: Params, y: Tensor, X: Tensor, df: float | None = None) -> Tensor:
    nu = p["nu"] if df is None else torch.tensor(df).to(y)
    return torch.as_tensor(dist.StudentT(nu, X @ p["b"], p["s2"].sqrt()).log_prob(y))


def location(y: Tensor) -> None:
    """A plain location, and a latent that divides a variance: the same t distribution."""
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        v = pyro.sample("v", dist.InverseGamma(2.0, 2.0), infer=OTHER_MARK)
        pyro.sample("y", dist.Normal(m, s * v.sqrt()), obs=y)


def known_location(y: Tensor) -> None:
    r = pyro.sample("r", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        u = pyro.sample("u", dist.Gamma(1.5, 1.5), infer=MARK)
        pyro.sample("y", dist.Normal(0.5, (r * u).rsqrt()), obs=y)


def known_scale(y: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        u = pyro.sample("u", dist.Gamma(1.5, 1.5), infer=MARK)
        pyro.sample("y", dist.Normal(m, 0.7 * u.rsqrt()), obs=y)


def multivariate(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    P = pyro.sample("P", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
    nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Gamma(nu / 2, nu / 2), infer=MARK)
        precision = P * u[:, None, None]
        pyro.sample("x", dist.MultivariateNormal(m, precision_matrix=precision), obs=x)


def _multivariate(p: Params, x: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(torch.linalg.inv(p["P"]))
    return torch.as_tensor(dist.MultivariateStudentT(p["nu"], p["m"], factor).log_prob(x))


def columns(x: Tensor) -> None:
    """One weight for all columns of a row."""
    m = pyro.sample("m", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    r = pyro.sample("r", dist.Gamma(2.0 * torch.ones(2), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Gamma(2.0, 2.0), infer=MARK)
        pyro.sample("x", dist.Normal(m, (r * u[:, None]).rsqrt()).to_event(1), obs=x)


def _columns(p: Params, x: Tensor) -> Tensor:
    factor = torch.diag(p["r"].rsqrt())
    four = torch.tensor(4.0).to(x)
    return torch.as_tensor(dist.MultivariateStudentT(four, p["m"], factor).log_prob(x))


def mixture(x: Tensor) -> None:
    w = pyro.sample("w", dist.Dirichlet(2.0 * torch.ones(2)))
    with pyro.plate("components", 2):
        P = pyro.sample("P", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
        m = pyro.sample("m", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        u = pyro.sample("u", dist.Gamma(nu[z] / 2, nu[z] / 2), infer=MARK)
        precision = P[z] * u[..., None, None]
        pyro.sample("x", dist.MultivariateNormal(m[z], precision_matrix=precision), obs=x)


def _mixture(p: Params, x: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(torch.linalg.inv(p["P"]))
    each = dist.MultivariateStudentT(p["nu"], p["m"], factor).log_prob(x[:, None])
    return torch.logsumexp(p["w"].log() + each, 1)


def mixture_of_lines(y: Tensor, X: Tensor) -> None:
    """A regression of each component, degrees of freedom known."""
    w = pyro.sample("w", dist.Dirichlet(2.0 * torch.ones(2)))
    with pyro.plate("components", 2):
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 10.0).to_event(1))
        r = pyro.sample("r", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(w))
        u = pyro.sample("u", dist.Gamma(2.0, 2.0), infer=MARK)
        pyro.sample("y", dist.Normal((X * b[z]).sum(-1), (r[z] * u).rsqrt()), obs=y)


def _mixture_of_lines(p: Params, y: Tensor, X: Tensor) -> Tensor:
    each = dist.StudentT(4.0, X @ p["b"].T, p["r"].rsqrt()).log_prob(y[:, None])
    return torch.logsumexp(p["w"].log() + each, 1)


def negative_binomial(x: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Gamma(a, a))
        pyro.sample("x", dist.Poisson(u * rate), obs=x)


def gamma_poisson(x: Tensor) -> None:
    b = pyro.sample("b", dist.Gamma(2.0, 0.5))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Gamma(2.0, b))
        pyro.sample("x", dist.Poisson(u), obs=x)


def count_regression(x: Tensor, X: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 5.0).to_event(1))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Gamma(a, a))
        pyro.sample("x", dist.Poisson(u * (X @ b).exp()), obs=x)


def _count_regression(p: Params, x: Tensor, X: Tensor) -> Tensor:
    return torch.as_tensor(dist.GammaPoisson(p["a"], p["a"] / (X @ p["b"]).exp()).log_prob(x))


def frailty(x: Tensor) -> None:
    """Waiting times whose rates have a common factor for each pair: a Lomax of two."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    with pyro.plate("pairs", len(x), dim=-2):
        u = pyro.sample("u", dist.Gamma(a, a), infer=MARK)
        with pyro.plate("members", 2, dim=-1):
            pyro.sample("x", dist.Exponential(rate * u), obs=x)


def _frailty(p: Params, x: Tensor) -> Tensor:
    a, rate = p["a"], p["rate"]
    rising = torch.lgamma(a + 2.0) - torch.lgamma(a) + 2.0 * rate.log()
    return rising + a * a.log() - (a + 2.0) * (a + rate * x.sum(1)).log()


def beta_binomial(x: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    b = pyro.sample("b", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Beta(a, b))
        pyro.sample("x", dist.Binomial(10, u), obs=x)


def beta_bernoulli(x: Tensor) -> None:
    """Answers of one person: the probability of no is the latent."""
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    b = pyro.sample("b", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Beta(a, b))
        pyro.sample("x", dist.Bernoulli((1.0 - u)[:, None].expand(-1, 6)).to_event(1), obs=x)


def _beta_bernoulli(p: Params, x: Tensor) -> Tensor:
    yes = x.sum(1)
    ways = torch.lgamma(torch.tensor(7.0).to(x)) - torch.lgamma(yes + 1) - torch.lgamma(7.0 - yes)
    six = torch.tensor(6.0).to(x)
    return torch.as_tensor(dist.BetaBinomial(p["b"], p["a"], six).log_prob(yes) - ways)


def dirichlet_multinomial(x: Tensor) -> None:
    with pyro.plate("categories", 3):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Dirichlet(a))
        pyro.sample("x", dist.Multinomial(20, u, validate_args=False), obs=x)


def dirichlet_categorical(x: Tensor) -> None:
    """Choices of one person among three, five each."""
    with pyro.plate("categories", 3):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    with pyro.plate("persons", len(x), dim=-2):
        u = pyro.sample("u", dist.Dirichlet(a), infer=MARK)
        with pyro.plate("choices", 5, dim=-1):
            pyro.sample("x", dist.Categorical(u), obs=x)


def _dirichlet_categorical(p: Params, x: Tensor) -> Tensor:
    counts = torch.nn.functional.one_hot(x, 3).sum(1).double()
    ways = torch.lgamma(torch.tensor(6.0).double()) - torch.lgamma(counts + 1.0).sum(-1)
    five = torch.tensor(5.0).double()
    return torch.as_tensor(dist.DirichletMultinomial(p["a"], five).log_prob(counts) - ways)


PAIRS = torch.empty(N, 2, dtype=torch.float64).exponential_(generator=_generator(3))
CLOUDS = _t(4, 4.0, N, 2) + 7.0 * (torch.arange(N) % 2).double()[:, None]
TWO_LINES = torch.where(torch.arange(N) % 2 == 0, LINE, -LINE) + 0.3 * _t(5, 4.0, N)
SHARES = torch.rand(N, 3, generator=_generator(6), dtype=torch.float64)
TRIALS = torch.binomial(torch.full((N,), 10.0).double(), SHARES[:, 0], generator=_generator(7))
ANSWERS = torch.bernoulli(SHARES[:, :1].expand(-1, 6), generator=_generator(8))
CHOICES = torch.multinomial(SHARES, 5, replacement=True, generator=_generator(9))
TALLIES = (
    torch.nn.functional.one_hot(
        torch.multinomial(SHARES, 20, replacement=True, generator=_generator(10)), 3
    )
    .sum(1)
    .double()
)

CASES = {
    "regression": Case(
        regression, (LINE + _t(12, 3.0, N), X), _regression, ("nu",)
    ),
    "regression, known df": Case(
        regression, (LINE + _t(12, 3.0, N), X), _regression, kwargs={"df": 4.0}
    ),
    "location": Case(
        location, (_t(12, 3.0, N),),
        lambda p, y: dist.StudentT(4.0, p["m"], p["s"]).log_prob(y), latent="v",
    ),
    "known location": Case(
        known_location, (_t(12, 3.0, N),),
        lambda p, y: dist.StudentT(3.0, 0.5, p["r"].rsqrt()).log_prob(y),
    ),
    "known scale": Case(
        known_scale, (_t(12, 3.0, N),),
        lambda p, y: dist.StudentT(3.0, p["m"], 0.7).log_prob(y),
    ),
    "multivariate": Case(multivariate, (_t(12, 3.0, N, 2),), _multivariate, ("nu",)),
    "columns": Case(columns, (_t(12, 3.0, N, 2),), _columns),
    "mixture": Case(mixture, (CLOUDS,), _mixture, ("nu",)),
    "mixture of lines": Case(mixture_of_lines, (TWO_LINES, X), _mixture_of_lines),
    "negative binomial": Case(
        negative_binomial, (COUNTS,),
        lambda p, x: dist.GammaPoisson(p["a"], p["a"] / p["rate"]).log_prob(x), ("a",),
    ),
    "gamma-Poisson": Case(
        gamma_poisson, (COUNTS,), lambda p, x: dist.GammaPoisson(2.0, p["b"]).log_prob(x)
    ),
    "count regression": Case(count_regression, (COUNTS, X), _count_regression, ("a", "b")),
    "frailty": Case(frailty, (PAIRS,), _frailty, ("a",)),
    "beta-binomial": Case(
        beta_binomial, (TRIALS,),
        lambda p, x: dist.BetaBinomial(p["a"], p["b"], torch.tensor(10.0).to(x)).log_prob(x),
        ("a", "b"),
    ),
    "beta-Bernoulli": Case(beta_bernoulli, (ANSWERS,), _beta_bernoulli, ("a", "b")),
    "Dirichlet-multinomial": Case(
        dirichlet_multinomial, (TALLIES,),
        lambda p, x: dist.DirichletMultinomial(p["a"], torch.tensor(20.0).to(x)).log_prob(x),
        ("a",),
    ),
    "Dirichlet-categorical": Case(
        dirichlet_categorical, (CHOICES,), _dirichlet_categorical, ("a",)
    ),
}  # fmt: skip
