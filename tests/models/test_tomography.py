"""Emission tomography: sites, densities against SciPy, the default prior, missing rays, errors."""

import re
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy import stats

from ember.models import emission_tomography

R, P = 30, 12


@pytest.fixture
def system() -> torch.Tensor:
    weights = torch.rand(R, P, dtype=torch.float64)
    return torch.where(weights < 0.5, weights, 0.0)


@pytest.fixture
def counts(system: torch.Tensor) -> torch.Tensor:
    return torch.poisson(system @ torch.linspace(0.0, 9.0, P, dtype=torch.float64) + 1.0)


def sites(*args: Any, **kwargs: Any) -> dict[str, Any]:
    trace = poutine.trace(emission_tomography).get_trace(*args, **kwargs)
    return {name: site for name, site in trace.nodes.items() if name in ("image", "counts")}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_sites(
    system: torch.Tensor, counts: torch.Tensor, dtype: torch.dtype, sparse: bool, check_sites: Any
) -> None:
    given = system.to_sparse() if sparse else system
    expected = dtype if dtype.is_floating_point else torch.float32
    shapes = {"image": (P,), "counts": (R,)}
    check_sites(shapes, expected, emission_tomography, counts.to(dtype), given)
    check_sites(shapes, expected, emission_tomography, counts.to(dtype), given, background=0.5)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("background", [None, 0.5, "each"])
def test_log_joint_equals_scipy(
    system: torch.Tensor, counts: torch.Tensor, background: Any, sparse: bool, log_joint: Any
) -> None:
    known = torch.linspace(0.1, 2.0, R).double() if background == "each" else background
    image = torch.linspace(0.5, 7.0, P, dtype=torch.float64)
    given = system.to_sparse() if sparse else system
    ours = log_joint(emission_tomography, {"image": image}, counts, given, background=known)
    b = np.zeros(R) if known is None else np.broadcast_to(np.asarray(known), R)
    level = (counts.numpy() - b).sum() / system.numpy().sum()
    theirs = stats.gamma(1.5, scale=level / 1.5).logpdf(image.numpy()).sum()
    theirs += stats.poisson(system.numpy() @ image.numpy() + b).logpmf(counts.numpy()).sum()
    assert float(ours) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
def test_runs_under_guides(system: torch.Tensor, counts: torch.Tensor, sparse: bool) -> None:
    given = system.to_sparse() if sparse else system
    for guide in (AutoDelta(emission_tomography), AutoNormal(emission_tomography)):
        for particles in ({}, {"num_particles": 3, "vectorize_particles": True}):
            pyro.clear_param_store()
            elbo = Trace_ELBO(max_plate_nesting=1, **particles)
            assert np.isfinite(elbo.loss(emission_tomography, guide, counts, given))


def test_prior_is_overridden(system: torch.Tensor, counts: torch.Tensor) -> None:
    shape = np.linspace(1.0, 4.0, P)
    prior = sites(counts, system, prior={"shape": shape, "rate": 2})["image"]["fn"]
    assert prior.concentration.tolist() == shape.tolist()
    assert prior.rate.tolist() == [2.0] * P


def test_default_prior_has_the_level_of_the_data(
    system: torch.Tensor, counts: torch.Tensor
) -> None:
    def level(*args: Any, **kwargs: Any) -> float:
        mean = sites(*args, **kwargs)["image"]["fn"].mean
        assert bool((mean == mean[0]).all())
        return float(mean[0])

    assert level(counts, system) == pytest.approx(float(counts.sum() / system.sum()))
    assert level(counts, 10 * system) == pytest.approx(0.1 * level(counts, system))
    assert level(0 * counts, system) == pytest.approx(0.5 / float(system.sum()))  # half a count
    assert level(counts, system, background=1e3) == level(0 * counts, system)
    missing = torch.where(torch.arange(R) < 10, torch.nan, counts)
    assert level(missing, system) == pytest.approx(level(counts[10:], system[10:]))


def test_missing_rays_are_absent(
    system: torch.Tensor, counts: torch.Tensor, log_joint: Any
) -> None:
    prior = {"shape": 2.0, "rate": 0.4}
    image = {"image": torch.linspace(0.5, 7.0, P, dtype=torch.float64)}
    missing = torch.where(torch.arange(R) < 10, torch.nan, counts)
    with_gaps = log_joint(emission_tomography, image, missing, system, prior=prior)
    without = log_joint(emission_tomography, image, counts[10:], system[10:], prior=prior)
    assert float(with_gaps) == pytest.approx(float(without), rel=1e-12)


SYSTEM = torch.eye(3)
ERRORS: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    ([1, 2, 3], SYSTEM, {}, TypeError, "`counts` must be a torch.Tensor, not list"),
    (torch.ones(3, dtype=torch.bool), SYSTEM, {}, TypeError, "`counts` must hold numbers"),
    (torch.ones(3, 1), SYSTEM, {}, ValueError, "flatten a sinogram"),
    (torch.ones(0), SYSTEM, {}, ValueError, "`counts` is empty"),
    (torch.full((3,), torch.nan), SYSTEM, {}, ValueError, "NaN along every ray"),
    (torch.tensor([1.0, 2.5, 0.0]), SYSTEM, {}, ValueError, "negative, fractional or infinite"),
    (torch.tensor([1, -2, 0]), SYSTEM, {}, ValueError, "negative, fractional or infinite"),
    (torch.tensor([1.0, torch.inf, 0.0]), SYSTEM, {}, ValueError, "fractional or infinite"),
    (torch.ones(3), np.eye(3), {}, TypeError, "`system` must be a torch.Tensor, dense or sparse"),
    (torch.ones(3), SYSTEM.long(), {}, TypeError, "`system` must be float32 or float64"),
    (torch.ones(4), SYSTEM, {}, ValueError, "one row for each of the 4 rays"),
    (torch.ones(3), -SYSTEM, {}, ValueError, "`system` must be finite and non-negative"),
    (torch.ones(3), (-SYSTEM).to_sparse(), {}, ValueError, "finite and non-negative"),
    (torch.ones(3), SYSTEM / 0, {}, ValueError, "finite and non-negative"),
    (torch.ones(3), SYSTEM, {"background": "much"}, TypeError, "`background` must hold numbers"),
    (torch.ones(3), SYSTEM, {"background": [1.0, 2.0]}, ValueError, "or have shape (3,)"),
    (torch.ones(3), SYSTEM, {"background": -1.0}, ValueError, "`background` must be finite and"),
    (torch.ones(3), SYSTEM[:, :2], {}, ValueError, "along ray 2, which meets no pixel"),
    (torch.ones(3), SYSTEM, {"prior": {"mean": 1}}, ValueError, "unknown key 'mean'"),
    (torch.ones(3), SYSTEM, {"prior": {"rate": 0}}, ValueError, "must be greater than 0"),
]


@pytest.mark.parametrize(("counts", "system", "options", "error", "message"), ERRORS)
def test_errors(
    counts: Any, system: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        emission_tomography(counts, system, **options)
