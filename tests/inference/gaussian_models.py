"""Small models with Gaussian latents, written by hand as a user would, and data drawn from them.

``CASES`` can be integrated exactly; ``REFUSED`` cannot, and must be refused by a sentence that
names the sites. Nothing of Ember is used here.
"""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from tests.inference import dense_gaussian
from tests.inference.brute_force import run
from tests.inference.examples import Example

__all__ = ["CASES", "REFUSED", "Case", "Refused", "unmarked"]

GAUSSIAN: Any = {"integrate": "gaussian"}
POSITIVE = constraints.positive


@dataclass(frozen=True)
class Case:
    """A model, its data, and the names of its Gaussian latents.

    Attributes:
        model: A Pyro model, its Gaussian latents marked.
        args: Its data.
        latents: The names of the Gaussian latents, in any order.
        kwargs: Its options.
        objective: What has a maximum inside: "mle", or "map" where only the prior gives one.
        identified: Whether the parameters at the maximum are unique.
    """

    model: Callable[..., None]
    args: tuple[Any, ...]
    latents: tuple[str, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    objective: str = "mle"
    identified: bool = True

    def start(self) -> dict[str, Tensor]:
        """Where a search may begin: ``pyro.param`` sites as the model has them, else a draw."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls every single Wishart draw singular
            plain = run(self.model, {}, {}, *self.args, **self.kwargs)
        written = {
            name: site["value"].detach()
            for name, site in plain.nodes.items()
            if site["type"] == "param"
        }
        pyro.clear_param_store()
        return {**self.params(0), **written}

    def params(self, seed: int) -> dict[str, Tensor]:
        """Random parameters: draws from priors; ``pyro.param`` sites moved within their support."""
        drawn = Example("", self.model, self.args, self.kwargs).params(seed)
        return {name: value for name, value in drawn.items() if name not in self.latents}

    def dense(self, params: dict[str, Tensor], check: bool = True) -> dense_gaussian.Dense:
        """The oracle's answer at some parameters."""
        return dense_gaussian.dense(
            self.model, self.latents, params, *self.args, check=check, **self.kwargs
        )

    def maximum(self, start: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """The oracle's maximum of the objective, from some start."""
        return dense_gaussian.maximum(
            self.model, self.latents, start, *self.args, objective=self.objective, **self.kwargs
        )

    def unmarked(self) -> "Case":
        """The same model without marks."""
        return dataclasses.replace(self, model=unmarked(self.model))


class _Unmark(Messenger):
    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"] = {key: how for key, how in msg["infer"].items() if key != "integrate"}


def unmarked(model: Callable[..., None]) -> Callable[..., None]:
    """A model whose sites say nothing of how to integrate them."""

    def plain(*args: Any, **kwargs: Any) -> None:
        with _Unmark():
            model(*args, **kwargs)

    return plain


def latent(name: str, fn: Any) -> Tensor:
    """A Gaussian latent site, marked."""
    value: Tensor = pyro.sample(name, fn, infer=GAUSSIAN)
    return value


def positive(name: str, value: float | Tensor) -> Tensor:
    """A positive parameter."""
    start = torch.as_tensor(value, dtype=torch.get_default_dtype())
    found: Tensor = pyro.param(name, start, constraint=POSITIVE)
    return found


def real(name: str, *value: float) -> Tensor:
    """A parameter without bounds: a number, or a vector of several."""
    start = torch.tensor(value if len(value) > 1 else value[0], dtype=torch.get_default_dtype())
    found: Tensor = pyro.param(name, start)
    return found


# -- data ------------------------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def codes(seed: int, levels: int, rows: int) -> Tensor:
    """Level codes of the rows, unbalanced, every level seen at least twice."""
    generator = torch.Generator().manual_seed(seed)
    more = torch.randint(levels, (rows - 2 * levels,), generator=generator)
    every = torch.cat([torch.arange(levels).repeat(2), more])
    return every[torch.randperm(rows, generator=generator)]


GROUP = codes(0, 6, 40)
X = torch.stack([torch.ones(40, dtype=torch.float64), torch.linspace(-1.0, 2.0, 40).double()], -1)
Y = 2.0 + 1.5 * normal(1, 6)[GROUP] + 0.7 * normal(2, 40)
Y_LINES = (
    X @ torch.tensor([1.0, -0.5], dtype=torch.float64)
    + (X * normal(3, 6, 2)[GROUP]).sum(-1) * 1.2
    + 0.4 * normal(4, 40)
)
ITEM = codes(5, 4, 40)
Y_CROSSED = 2.0 + 1.5 * normal(1, 6)[GROUP] + 0.9 * normal(6, 4)[ITEM] + 0.5 * normal(7, 40)
SHOWN = torch.arange(40) % 7 != 3


# -- effects of groups -----------------------------------------------------------------------------


def random_intercept(y: Tensor, group: Tensor) -> None:
    mu, su, se = real("mu", 1.0), positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + u[group], se), obs=y)


def prior_mean(y: Tensor, group: Tensor) -> None:
    """The mean stands in the latent's prior, variances are the parameters."""
    mu, vu, ve = real("mu", 1.0), positive("vu", 1.0), positive("ve", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        theta = latent("theta", dist.Normal(mu, vu.sqrt()))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(theta[group], ve.sqrt()), obs=y)


def non_centred(y: Tensor, group: Tensor) -> None:
    mu, su, se = real("mu", 1.0), positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        z = latent("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + su * z[group], se), obs=y)


def nested_plates(y: Tensor) -> None:
    """Balanced groups side by side: rows need no index."""
    mu, su, se = real("mu", 1.0), positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", y.shape[0], dim=-2):
        u = latent("u", dist.Normal(mu, su))
        with pyro.plate("rows", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(u, se), obs=y)


def correlated_slopes(y: Tensor, x: Tensor, group: Tensor) -> None:
    beta, se = real("beta", 0.0, 0.0), positive("se", 1.0)
    D = pyro.param("D", torch.eye(2), constraint=constraints.positive_definite)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.MultivariateNormal(torch.zeros(2), D))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ beta + (x * u[group]).sum(-1), se), obs=y)


def slopes_with_priors(y: Tensor, x: Tensor, group: Tensor) -> None:
    """The same by a precision matrix, every parameter with its conjugate prior."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(5.0), torch.eye(2)))
    variance = pyro.sample("variance", dist.InverseGamma(2.0, 1.0))
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision))
    with pyro.plate("rows", len(y)):
        line = (x * (beta + u[group])).sum(-1)
        pyro.sample("y", dist.Normal(line, variance.sqrt()), obs=y)


def independent_slopes(y: Tensor, x: Tensor, group: Tensor) -> None:
    beta, se = real("beta", 0.0, 0.0), positive("se", 1.0)
    su = positive("su", torch.ones(2))
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(torch.zeros(2), su).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ beta + (x * u[group]).sum(-1), se), obs=y)


def slopes_as_two_sites(y: Tensor, x: Tensor, group: Tensor) -> None:
    beta, se = real("beta", 0.0, 0.0), positive("se", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        a = latent("a", dist.Normal(beta[0], positive("sa", 1.0)))
        b = latent("b", dist.Normal(beta[1], positive("sb", 1.0)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(a[group] + b[group] * x[:, 1], se), obs=y)


def crossed(y: Tensor, group: Tensor, item: Tensor) -> None:
    mu, su, sw, se = (real("mu", 1.0), *(positive(name, 1.0) for name in ("su", "sw", "se")))
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("items", int(item.max()) + 1):
        w = latent("w", dist.Normal(0.0, sw))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + u[group] + w[item], se), obs=y)


DISTRICT = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])  # of each school
SCHOOL = codes(8, 12, 60)
_DISTRICTS = 1.0 + 2.0 * normal(9, 4)
_SCHOOLS = _DISTRICTS[DISTRICT] + 1.2 * normal(10, 12)
Y_NESTED = _SCHOOLS[SCHOOL] + 0.6 * normal(11, 60)


def nested(y: Tensor, school: Tensor, district: Tensor) -> None:
    """A latent in the location of another's prior."""
    mu, sd, ss, se = (real("mu", 1.0), *(positive(name, 1.0) for name in ("sd", "ss", "se")))
    with pyro.plate("districts", int(district.max()) + 1):
        a = latent("a", dist.Normal(mu, sd))
    with pyro.plate("schools", len(district)):
        b = latent("b", dist.Normal(a[district], ss))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(b[school], se), obs=y)


def weighted(y: Tensor, group: Tensor, weight: Tensor) -> None:
    """Rows that count more than once."""
    mu, su, se = real("mu", 1.0), positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)), poutine.scale(scale=weight):
        pyro.sample("y", dist.Normal(mu + u[group], se), obs=y)


def masked(y: Tensor, group: Tensor, shown: Any) -> None:
    """Rows of which some are left out; a whole group may be."""
    mu, su, se = real("mu", 1.0), positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)), poutine.mask(mask=shown):
        pyro.sample("y", dist.Normal(mu + u[group], se), obs=y)


def two_children(y: Tensor, group: Tensor, other: Tensor, item: Tensor) -> None:
    """Two observed sites that share latents, one of them multiplied by a parameter."""
    mu, nu, c = real("mu", 0.0), real("nu", 0.0), real("c", 0.8)
    su, se, sv = (positive(name, 1.0) for name in ("su", "se", "sv"))
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + u[group], se), obs=y)
    with pyro.plate("others", len(other)):
        pyro.sample("other", dist.Normal(nu + c * u[item], sv), obs=other)


def shared_scale(y: Tensor, group: Tensor) -> None:
    """One scale for the effects and for the noise."""
    mu, s = real("mu", 1.0), positive("s", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, s))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + u[group], s), obs=y)


def only_slopes(y: Tensor, x: Tensor, group: Tensor) -> None:
    """The data multiply the latent, noise and effects have priors."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    vb, ve = (pyro.sample(name, dist.InverseGamma(2.0, 1.0)) for name in ("vb", "ve"))
    with pyro.plate("groups", int(group.max()) + 1):
        b = latent("b", dist.Normal(0.0, vb.sqrt()))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + x[:, 1] * b[group], ve.sqrt()), obs=y)


PAIRS = torch.stack([codes(12, 6, 40), (codes(12, 6, 40) + 1 + torch.arange(40) % 4) % 6])
Y_PAIRS = 1.3 * (normal(13, 6)[PAIRS[0]] - normal(13, 6)[PAIRS[1]]) + 0.5 * normal(14, 40)


def paired_comparison(y: Tensor, one: Tensor, other: Tensor) -> None:
    """Each row reads two entries of the same latent."""
    home, su, se = real("home", 0.0), positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("teams", int(one.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(home + u[one] - u[other], se), obs=y)


Y_PLANE = normal(15, 6, 2)[GROUP] @ torch.tensor([[1.0, 0.5], [0.0, 0.8]]).double() + 0.5 * normal(
    16, 40, 2
)


def vector_effects(y: Tensor, group: Tensor) -> None:
    """Rows with several columns that share a vector of effects; both covariances are free."""
    mu = real("mu", 0.0, 0.0)
    D, S = (
        pyro.param(name, torch.eye(2), constraint=constraints.positive_definite)
        for name in ("D", "S")
    )
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.MultivariateNormal(torch.zeros(2), D))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.MultivariateNormal(mu + u[group], S), obs=y)


EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)


def known_scales(y: Tensor, error: Tensor) -> None:
    """Meta-analysis: each study's own effect, its standard error known."""
    mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
    tau2 = pyro.sample("tau2", dist.InverseGamma(2.0, 50.0))
    with pyro.plate("studies", len(y)):
        theta = latent("theta", dist.Normal(mu, tau2.sqrt()))
        pyro.sample("y", dist.Normal(theta, error), obs=y)


def ridge(y: Tensor, x: Tensor) -> None:
    """A regression whose coefficients are integrated: evidence maximisation of the ridge."""
    mu, tau, se = real("mu", 0.0), positive("tau", 1.0), positive("se", 1.0)
    with pyro.plate("columns", x.shape[1]):
        beta = latent("beta", dist.Normal(0.0, tau))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + x @ beta, se), obs=y)


# -- factors of rows -------------------------------------------------------------------------------

_W = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.7, 0.5], [0.2, 1.1], [0.9, -0.4]]).double()
X_FACTORS = (
    normal(17, 50, 2) @ _W.mT
    + torch.tensor([0.5, 0.7, 0.4, 0.6, 0.5]).double() * normal(18, 50, 5)
    + torch.tensor([1.0, 0.0, -2.0, 0.0, 3.0]).double()
)
ENTRIES = torch.rand(50, 5, generator=torch.Generator().manual_seed(19)) > 0.15


def fixed_loadings(x: Tensor) -> None:
    """Factor analysis with unit lower triangular loadings, so that nothing can rotate."""
    dim = x.shape[1]
    locs = pyro.param("locs", torch.zeros(dim))
    below = torch.tril_indices(dim, 2, -1)
    free = pyro.param("free", torch.full((below.shape[1],), 0.5))
    psi = positive("psi", torch.ones(dim))
    scales = positive("scales", torch.ones(2))
    loadings = torch.eye(dim, 2).index_put(tuple(below), free)
    with pyro.plate("rows", len(x)):
        z = latent("z", dist.Normal(torch.zeros(2), scales).to_event(1))
        pyro.sample("x", dist.Normal(locs + z @ loadings.mT, psi.sqrt()).to_event(1), obs=x)


def factor_analysis(x: Tensor, shown: Tensor | None = None) -> None:
    dim = x.shape[1]
    locs = pyro.param("locs", torch.zeros(dim))
    loadings = pyro.param("loadings", torch.tensor([[1.0, 0.2]]) * torch.eye(dim, 2) + 0.1)
    psi = positive("psi", torch.ones(dim))
    with pyro.plate("rows", len(x)):
        z = latent("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        fn = dist.Normal(locs + z @ loadings.mT, psi.sqrt())
        pyro.sample("x", (fn if shown is None else fn.mask(shown)).to_event(1), obs=x)


def multivariate_factors(x: Tensor) -> None:
    """The factors as one multivariate normal."""
    locs = pyro.param("locs", torch.zeros(x.shape[1]))
    loadings = pyro.param("loadings", torch.eye(x.shape[1], 2) + 0.1)
    psi = positive("psi", torch.ones(x.shape[1]))
    with pyro.plate("rows", len(x)):
        z = latent("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        mean = locs + (loadings @ z.unsqueeze(-1)).squeeze(-1)
        pyro.sample("x", dist.Normal(mean, psi.sqrt()).to_event(1), obs=x)


def ppca(x: Tensor) -> None:
    locs = pyro.param("locs", torch.zeros(x.shape[1]))
    loadings = pyro.param("loadings", torch.eye(x.shape[1], 2) + 0.1)
    sigma = positive("sigma", 1.0)
    with pyro.plate("rows", len(x)):
        z = latent("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(locs + z @ loadings.mT, sigma).to_event(1), obs=x)


# -- chains ----------------------------------------------------------------------------------------

_SERIES = 3.0 + (0.8 * normal(20, 24)).cumsum(0) + 0.5 * normal(21, 24)
_GAPS = tuple(int(t) for t in torch.arange(24) if t % 7 == 5)
T = len(_SERIES)


def local_level(y: Tensor, gaps: tuple[int, ...] = ()) -> None:
    q, r = positive("q", 1.0), positive("r", 1.0)
    level = latent("level_0", dist.Normal(0.0, 10.0))
    pyro.sample("y_0", dist.Normal(level, r.sqrt()), obs=y[0])
    for t in pyro.markov(range(1, len(y))):
        level = latent(f"level_{t}", dist.Normal(level, q.sqrt()))
        if t not in gaps:
            pyro.sample(f"y_{t}", dist.Normal(level, r.sqrt()), obs=y[t])


def autoregression(y: Tensor) -> None:
    """A first-order autoregression, seen with noise; the coefficient is a parameter."""
    phi, c = real("phi", 0.5), real("c", 0.0)
    q, r = positive("q", 1.0), positive("r", 1.0)
    state = latent("state_0", dist.Normal(0.0, 5.0))
    pyro.sample("y_0", dist.Normal(c + state, r), obs=y[0])
    for t in pyro.markov(range(1, len(y))):
        state = latent(f"state_{t}", dist.Normal(phi * state, q))
        pyro.sample(f"y_{t}", dist.Normal(c + state, r), obs=y[t])


def local_trend(y: Tensor) -> None:
    """Two states in each step, with priors that keep their variances off zero."""
    q, s, r = (pyro.sample(name, dist.InverseGamma(2.0, 0.3)) for name in ("q", "s", "r"))
    level, slope = torch.tensor(0.0), torch.tensor(0.0)
    wide, bend = torch.tensor(10.0), torch.tensor(2.0)
    for t in pyro.markov(range(len(y))):
        ahead = level + slope
        level = latent(f"level_{t}", dist.Normal(ahead, wide))
        slope = latent(f"slope_{t}", dist.Normal(slope, bend))
        pyro.sample(f"y_{t}", dist.Normal(level, r.sqrt()), obs=y[t])
        wide, bend = q.sqrt(), s.sqrt()


def vector_chain(y: Tensor) -> None:
    """A vector state that turns by a known matrix; the precision of its steps has a prior."""
    turn = torch.tensor([[0.9, 0.3], [-0.3, 0.9]])
    P = pyro.sample("P", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
    r = pyro.sample("r", dist.Gamma(2.0, 2.0))
    state = latent("state_0", dist.MultivariateNormal(torch.zeros(2), 4.0 * torch.eye(2)))
    for t in pyro.markov(range(len(y))):
        if t > 0:
            state = latent(f"state_{t}", dist.MultivariateNormal(turn @ state, precision_matrix=P))
        pyro.sample(f"y_{t}", dist.Normal(state, r.rsqrt()).to_event(1), obs=y[t])


def many_series(y: Tensor) -> None:
    """Several series of local levels side by side in a plate (S, T)."""
    q, r = positive("q", 1.0), positive("r", 1.0)
    with pyro.plate("series", len(y)):
        level = latent("level_0", dist.Normal(0.0, 10.0))
        pyro.sample("y_0", dist.Normal(level, r), obs=y[:, 0])
        for t in pyro.markov(range(1, y.shape[1])):
            level = latent(f"level_{t}", dist.Normal(level, q))
            pyro.sample(f"y_{t}", dist.Normal(level, r), obs=y[:, t])


def steps(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{t}" for t in range(count))


Y_TURNING = (0.5 * normal(22, 12, 2)).cumsum(0) + 0.9 * normal(23, 12, 2)
Y_SERIES = (0.7 * normal(24, 3, 8)).cumsum(-1) + 0.4 * normal(25, 3, 8)


# -- known covariances -----------------------------------------------------------------------------


def relationship(founders: int, animals: int) -> Tensor:
    """The numerator relationship matrix of a pedigree whose parents are the animals before."""
    A = torch.eye(animals, dtype=torch.float64)
    for i in range(founders, animals):
        sire, dam = (3 * i) % (i - 1), (5 * i + 2) % i
        A[i, :i] = A[:i, i] = 0.5 * (A[sire, :i] + A[dam, :i])
        A[i, i] = 1.0 + 0.5 * A[sire, dam]
    return A


A = relationship(5, 16)
ANIMAL = codes(26, 16, 40)
Y_KIN = 3.0 + 1.4 * torch.linalg.cholesky(A)[ANIMAL] @ normal(27, 16) + 0.6 * normal(28, 40)


def kinship(y: Tensor, animal: Tensor, matrix: Tensor) -> None:
    mu, va, ve = real("mu", 1.0), positive("va", 1.0), positive("ve", 1.0)
    u = latent("u", dist.MultivariateNormal(torch.zeros(len(matrix)), va * matrix))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + u[animal], ve.sqrt()), obs=y)


def kinship_non_centred(y: Tensor, animal: Tensor, factor: Tensor) -> None:
    mu, va, ve = real("mu", 1.0), positive("va", 1.0), positive("ve", 1.0)
    with pyro.plate("animals", len(factor)):
        z = latent("z", dist.Normal(0.0, 1.0))
    u = va.sqrt() * (factor @ z)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + u[animal], ve.sqrt()), obs=y)


# -- discrete latents beside Gaussian ones ---------------------------------------------------------

_SIDE = torch.arange(6) % 2
X_TWO = (
    torch.tensor([[3.0, 0.0, 0.0], [-3.0, 1.0, 0.0]]).double()[_SIDE]
    + normal(29, 6, 1) * torch.tensor([[1.0, 0.5, -0.5], [0.2, 1.0, 1.0]]).double()[_SIDE]
    + 0.5 * normal(30, 6, 3)
)
Y_CLASSES = (
    torch.tensor([-2.5, 2.5]).double()[torch.arange(5) % 2][:, None]
    + 0.6 * normal(31, 5, 1)
    + 0.4 * normal(32, 5, 4)
)


def factor_mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 3.0)))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        loadings = pyro.sample("loadings", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        psi = pyro.sample("psi", dist.InverseGamma(2.0 * torch.ones(3), 0.5).to_event(1))
    with pyro.plate("rows", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        z = latent("z", dist.Normal(0.0, 1.0))
        mean = locs[k] + loadings[k] * z.unsqueeze(-1)
        pyro.sample("x", dist.Normal(mean, psi[k].sqrt()).to_event(1), obs=x)


def intercept_mixture(y: Tensor) -> None:
    """Groups of two classes, each with its own mean and variance of the effects."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 3.0)))
    with pyro.plate("classes", 2):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        vu = pyro.sample("vu", dist.InverseGamma(2.0, 0.5))
    ve = pyro.sample("ve", dist.InverseGamma(2.0, 0.5))
    with pyro.plate("groups", y.shape[0], dim=-2):
        c = pyro.sample("c", dist.Categorical(weights))
        u = latent("u", dist.Normal(mu[c], vu[c].sqrt()))
        with pyro.plate("rows", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(u, ve.sqrt()), obs=y)


CASES: dict[str, Case] = {
    "random intercept": Case(random_intercept, (Y, GROUP), ("u",)),
    "prior mean": Case(prior_mean, (Y, GROUP), ("theta",)),
    "non-centred": Case(non_centred, (Y, GROUP), ("z",)),
    "nested plates": Case(nested_plates, (Y_CLASSES,), ("u",)),
    "correlated slopes": Case(correlated_slopes, (Y_LINES, X, GROUP), ("u",)),
    "slopes with priors": Case(slopes_with_priors, (Y_LINES, X, GROUP), ("u",), objective="map"),
    "independent slopes": Case(independent_slopes, (Y_LINES, X, GROUP), ("u",)),
    "slopes as two sites": Case(slopes_as_two_sites, (Y_LINES, X, GROUP), ("a", "b")),
    "crossed": Case(crossed, (Y_CROSSED, GROUP, ITEM), ("u", "w")),
    "nested": Case(nested, (Y_NESTED, SCHOOL, DISTRICT), ("a", "b")),
    "weighted": Case(weighted, (Y, GROUP, 0.5 + (torch.arange(40) % 3).double()), ("u",)),
    "masked": Case(masked, (Y, GROUP, SHOWN), ("u",)),
    "group without rows": Case(masked, (Y, GROUP, SHOWN & (GROUP != 2)), ("u",)),
    "two children": Case(
        two_children, (Y, GROUP, -0.7 * Y_CROSSED + 0.3 * normal(33, 40), GROUP), ("u",)
    ),
    "shared scale": Case(shared_scale, (Y, GROUP), ("u",)),
    "only slopes": Case(only_slopes, (Y_LINES, X, GROUP), ("b",), objective="map"),
    "paired comparison": Case(paired_comparison, (Y_PAIRS, *PAIRS), ("u",)),
    "vector effects": Case(vector_effects, (Y_PLANE, GROUP), ("u",)),
    "known scales": Case(known_scales, (EFFECT, ERROR), ("theta",), objective="map"),
    "ridge": Case(
        ridge, (normal(34, 40, 4) @ normal(35, 4) + normal(36, 40), normal(34, 40, 4)), ("beta",)
    ),
    "fixed loadings": Case(fixed_loadings, (X_FACTORS,), ("z",)),
    "factor analysis": Case(factor_analysis, (X_FACTORS,), ("z",), identified=False),
    "factor analysis with gaps": Case(
        factor_analysis, (X_FACTORS, ENTRIES), ("z",), identified=False
    ),
    "multivariate factors": Case(multivariate_factors, (X_FACTORS,), ("z",), identified=False),
    "ppca": Case(ppca, (X_FACTORS,), ("z",), identified=False),
    "local level": Case(local_level, (_SERIES,), steps("level", T)),
    "local level with gaps": Case(
        local_level, (_SERIES,), steps("level", T), kwargs={"gaps": _GAPS}
    ),
    "autoregression": Case(autoregression, (_SERIES,), steps("state", T)),
    "local trend": Case(
        local_trend, (_SERIES,), steps("level", T) + steps("slope", T), objective="map"
    ),
    "vector chain": Case(vector_chain, (Y_TURNING,), steps("state", 12), objective="map"),
    "many series": Case(many_series, (Y_SERIES,), steps("level", 8)),
    "kinship": Case(kinship, (Y_KIN, ANIMAL, A), ("u",)),
    "kinship, non-centred": Case(
        kinship_non_centred, (Y_KIN, ANIMAL, torch.linalg.cholesky(A)), ("z",)
    ),
    "factor mixture": Case(factor_mixture, (X_TWO,), ("z",), objective="map", identified=False),
    "intercept mixture": Case(
        intercept_mixture, (Y_CLASSES,), ("u",), objective="map", identified=False
    ),
}


# -- what is no Gaussian ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """A model that cannot be integrated exactly, and the sites that the refusal must name."""

    model: Callable[..., None]
    args: tuple[Any, ...]
    names: tuple[str, ...]


def poisson_child(y: Tensor, group: Tensor) -> None:
    su = positive("su", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)


def exponential(y: Tensor, group: Tensor) -> None:
    su, se = positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(u[group].exp(), se), obs=y)


def in_a_scale(y: Tensor, group: Tensor) -> None:
    su = positive("su", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(0.0, u[group].exp()), obs=y)


def product(y: Tensor, group: Tensor) -> None:
    su, se = positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
        w = latent("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(u[group] * w[group], se), obs=y)


def square(y: Tensor) -> None:
    se = positive("se", 1.0)
    with pyro.plate("rows", len(y)):
        z = latent("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z * z, se), obs=y)


def class_of_the_row(y: Tensor) -> None:
    """A class of each row beside an effect of its group: every row's class ties to every other."""
    weights = pyro.param("weights", torch.full((2,), 0.5), constraint=constraints.simplex)
    mu, su, se = real("mu", -1.0, 1.0), positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", y.shape[0], dim=-2):
        u = latent("u", dist.Normal(0.0, su))
        with pyro.plate("rows", y.shape[1], dim=-1):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("y", dist.Normal(mu[k] + u, se), obs=y)


COUNTS = (Y - Y.min()).round()

REFUSED: dict[str, Refused] = {
    "Poisson child": Refused(poisson_child, (COUNTS, GROUP), ("u", "y")),
    "exponential": Refused(exponential, (Y, GROUP), ("u", "y")),
    "in a scale": Refused(in_a_scale, (Y, GROUP), ("u", "y")),
    "product": Refused(product, (Y, GROUP), ("u", "w")),
    "square": Refused(square, (Y,), ("z", "y")),
    "class of the row": Refused(class_of_the_row, (Y_CLASSES,), ("u", "k")),
}
