"""Models with Gaussian effects of groups: intercepts, slopes, crossed, nested, and of relatives."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from tests.inference.gaussian_sites import codes, latent, normal, positive, real

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


def crossed_by_a_vector(y: Tensor, group: Tensor, item: Tensor) -> None:
    """All scales are entries of one parameter: those of effects enter no data, the last does."""
    mu = real("mu", 1.0)
    with pyro.plate("scales", 3):
        s = pyro.sample("s", dist.HalfCauchy(torch.tensor(2.0, dtype=torch.float64)))
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, s[0]))
    with pyro.plate("items", int(item.max()) + 1):
        w = latent("w", dist.Normal(0.0, s[1]))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + u[group] + w[item], s[2]), obs=y)


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
