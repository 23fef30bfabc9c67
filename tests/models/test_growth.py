"""Growth curves: against sums over a fine grid, and their own invariances."""

from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from ember.inference import EM, Adaptive, MonteCarlo
from ember.models import growth_curves

SUBJECTS, TIMES = 24, torch.linspace(0.0, 9.0, 8, dtype=torch.float64)


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    subject, times = torch.arange(SUBJECTS).repeat_interleave(8), TIMES.repeat(SUBJECTS)
    spread = torch.tensor([1.5, 0.8, 0.2]).double()
    middle = torch.tensor([10.0, 4.0, 0.2]).double()
    curves = middle + spread * torch.randn(SUBJECTS, 3, generator=generator, dtype=torch.float64)
    a, m, s = curves[subject].unbind(-1)
    noise = torch.randn(len(times), generator=generator, dtype=torch.float64)
    return a * torch.sigmoid((times - m) * torch.exp(-s)) + 0.5 * noise, times, subject


def test_log_likelihood_is_the_integral() -> None:
    """Of three subjects, by a sum over 61^3 points around the population's mean."""
    y, times, subject = (each[:24] for each in example())
    params = {
        "population": torch.tensor([10.0, 4.0, 0.2], dtype=torch.float64),
        "precision": torch.diag(torch.tensor([0.5, 1.5, 25.0], dtype=torch.float64)),
        "variance": torch.tensor(0.3, dtype=torch.float64),
    }
    line = np.linspace(-6.0, 6.0, 61)
    z = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    u = np.array([10.0, 4.0, 0.2]) + z / np.sqrt([0.5, 1.5, 25.0])
    log_prior = np.asarray(scipy.stats.norm.logpdf(z)).sum(1) + 3.0 * np.log(line[1] - line[0])
    truth = 0.0
    for g in range(3):
        t, own = times[subject == g].numpy(), y[subject == g].numpy()
        mean = u[:, :1] * scipy.special.expit((t - u[:, 1:2]) * np.exp(-u[:, 2:]))
        rows = np.asarray(scipy.stats.norm.logpdf(own, mean, 0.3**0.5)).sum(1)
        truth += float(scipy.special.logsumexp(rows + log_prior))
    found = EM(growth_curves, "mle").e_step(params, y, times, subjects=subject).log_likelihood
    assert found == pytest.approx(truth, abs=2e-3)
    finer: Any = {"integrate": {"curves": Adaptive(15, most=15)}}
    precise = EM(growth_curves, "mle", **finer).e_step(params, y, times, subjects=subject)
    assert precise.log_likelihood == pytest.approx(truth, abs=1e-5)


def test_fit_and_its_units() -> None:
    y, times, subject = example()
    fit = EM(growth_curves, seed=0).fit(y, times, subjects=subject)
    assert fit.converged, fit.stop_reason
    assert bool((fit.history.diff() >= -1e-9 * abs(fit.log_posterior)).all())
    assert fit.params["population"].tolist() == pytest.approx([10.0, 4.0, 0.2], abs=0.8)
    moved = EM(growth_curves, seed=0).fit(1e3 * y, 60.0 * times + 5e3, subjects=subject)
    a, m, s = fit.params["population"]
    truth = torch.stack([1e3 * a, 60.0 * m + 5e3, s + np.log(60.0)])
    assert torch.allclose(moved.params["population"], truth, rtol=1e-4)
    assert float(moved.params["variance"]) == pytest.approx(
        1e6 * float(fit.params["variance"]), rel=1e-3
    )


@pytest.mark.thorough
def test_draws_lead_to_the_same_optimum() -> None:
    y, times, subject = example()
    exact = EM(growth_curves, seed=0).fit(y, times, subjects=subject)
    rule = MonteCarlo(burn_in=80, averaged=60)
    fit = EM(growth_curves, seed=0, integrate={"curves": rule}).fit(y, times, subjects=subject)
    assert fit.converged, fit.stop_reason
    assert fit.monte_carlo is not None
    assert exact.log_posterior - 0.1 < fit.log_posterior
    off = (fit.params["population"] - exact.params["population"]).abs()
    assert bool((off < 5.0 * fit.monte_carlo.errors["population"]).all())


def test_gaps_are_rows_left_out() -> None:
    y, times, subject = example()
    params = {
        "population": torch.tensor([10.0, 4.0, 0.2], dtype=torch.float64),
        "precision": torch.eye(3).double(),
        "variance": torch.tensor(0.3, dtype=torch.float64),
    }
    hidden = torch.arange(len(y)) % 5 == 1
    em = EM(growth_curves, "mle")
    one = em.e_step(params, torch.where(hidden, torch.nan, y), times, subjects=subject)
    two = em.e_step(params, y[~hidden], times[~hidden], subjects=subject[~hidden])
    assert one.log_likelihood == pytest.approx(two.log_likelihood, abs=1e-7)


@pytest.mark.parametrize("shape", ["logistic", "gompertz"])
def test_sites(shape: str) -> None:
    y, times, subject = example()
    trace: Any = poutine.trace(growth_curves).get_trace(y, times, subjects=subject, shape=shape)
    found = {n: tuple(trace.nodes[n]["value"].shape) for n in ("population", "curves", "y")}
    assert found == {"population": (3,), "curves": (SUBJECTS, 3), "y": (len(y),)}
    assert trace.nodes["precision"]["value"].shape == (3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "linear"}, "`shape` must be one of 'logistic', 'gompertz'"),
        ({"times": TIMES}, r"`times` has 8 row\(s\)"),
        ({"subjects": torch.arange(8)}, r"`subjects` has 8 row\(s\)"),
        ({"times": torch.ones(8 * SUBJECTS)}, "are all the same"),
        ({"prior": {"rate": 1.0}}, "unknown key 'rate'"),
        ({"subjects": -torch.ones(8 * SUBJECTS)}, "`subjects` must hold level codes"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    y, times, subject = example()
    with pytest.raises(ValueError, match=message):
        growth_curves(**{"y": y, "times": times, "subjects": subject, **change})
