"""What the way to a maximum tells of the curvature there, and what it cannot tell."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.iteration.judgement import Judge


def one_factor(x: Tensor) -> None:
    """Columns about zero that follow a factor; without loadings all of them are noise."""
    loadings = pyro.param("loadings", torch.zeros(3))
    noise = pyro.param("noise", torch.ones(()), constraint=dist.constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1) * loadings, noise).to_event(1), obs=x)


def columns() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    z, e = (torch.randn(80, k, generator=generator, dtype=torch.float64) for k in (1, 3))
    return z * torch.tensor([1.0, -0.7, 0.5]) + 0.8 * e


@pytest.mark.parametrize("noise", [0.3, 1.0, 5.0])
def test_a_saddle_is_left_though_the_way_there_curves_down(noise: float) -> None:
    """Without loadings only the noise moves: nothing on the way shows that loadings would help."""
    start = {"loadings": torch.zeros(3), "noise": torch.tensor(noise)}
    em = EM(one_factor, "mle", integrate={"z": "gaussian"}, init=start)
    fit = em.fit(columns())
    assert fit.converged
    best = EM(one_factor, "mle", integrate={"z": "gaussian"}, seed=0).fit(columns())
    assert fit.log_likelihood == pytest.approx(best.log_likelihood, rel=1e-9)
    assert float(fit.params["loadings"].abs().min()) > 0.1


def test_the_way_spares_passes_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is the same without it; only passes are saved."""
    em = EM(one_factor, "mle", integrate={"z": "gaussian"}, seed=0)
    informed = em.fit(columns())
    monkeypatch.setattr(Judge, "see", lambda *_: None)
    plain = em.fit(columns())
    assert informed.evaluations < plain.evaluations
    assert informed.log_likelihood == pytest.approx(plain.log_likelihood, rel=1e-13)
    assert informed.stop_reason == plain.stop_reason
