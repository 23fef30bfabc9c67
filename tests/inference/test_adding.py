"""Statistics of pieces of data add up to those of the whole, whatever each piece's mean is."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.models import gaussian_mixture


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize(("components", "columns"), [(2, 2), (3, 2), (2, 3), (4, 1)])
def test_pieces_of_different_means(covariance: str, components: int, columns: int) -> None:
    x = torch.randn(60, columns, dtype=torch.float64) + 3 * torch.arange(60).reshape(60, 1) / 10
    options = {"components": components, "covariance": covariance}
    em = EM(gaussian_mixture, "mle", seed=0)
    params = em.initialise(x, **options)
    whole = em.e_step(params, x, **options)
    first, second, third = (em.e_step(params, part, **options) for part in x.split(25))
    pieces = first + second + third
    assert pieces.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
    for site, value in em.m_step(pieces).items():
        torch.testing.assert_close(value, em.m_step(whole)[site], rtol=1e-10, atol=1e-10)


def test_a_count_at_a_rate_of_zero_does_not_stop_the_numerical_update() -> None:
    """Its log density has no derivative, though it weighs nothing: no row is in that state."""
    y = torch.tensor([0.0, 0, 0, 0, 0, 0, 2, 3, 1, 4])

    def model(y: Tensor) -> None:
        share = pyro.sample("share", dist.Beta(1.0, 1.0))
        size = pyro.param("size", torch.tensor(0.0))
        with pyro.plate("rows", len(y)):
            never = pyro.sample("never", dist.Bernoulli(share))
            pyro.sample("y", dist.Poisson((1.0 - never) * size.exp()), obs=y)

    fit = EM(model, "mle").fit(y)
    rate = float(fit.params["size"].exp())
    # The mean of the positive counts is that of a Poisson without its zeros.
    assert rate / (1.0 - torch.exp(torch.tensor(-rate)).item()) == pytest.approx(2.5, rel=1e-5)
