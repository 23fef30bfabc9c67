"""Models whose rows have Gaussian latents of their own, alone or beside a discrete latent."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.inference.gaussian_sites import latent, normal, positive

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
