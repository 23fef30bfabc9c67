"""Models whose steps have Gaussian states, written one by one."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.inference.gaussian_sites import latent, normal, positive, real

SERIES = 3.0 + (0.8 * normal(20, 24)).cumsum(0) + 0.5 * normal(21, 24)
GAPS = tuple(int(t) for t in torch.arange(24) if t % 7 == 5)
T = len(SERIES)


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


Y_TURNING = (0.5 * normal(22, 12, 2)).cumsum(0) + 0.9 * normal(23, 12, 2)
SEVERAL = (0.7 * normal(24, 3, 8)).cumsum(-1) + 0.4 * normal(25, 3, 8)
