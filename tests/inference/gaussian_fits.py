"""Fits of the catalogue of Gaussian latents, at given parameters or at their end."""

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor

from ember.inference import EM, Fit
from tests.inference.gaussian_models import Case

TOLERANCE = 1e-9


def step_of(latent: str) -> tuple[str, int | None]:
    """The name of a latent without the number of its step, and that number."""
    stem, _, number = latent.rpartition("_")
    return (stem, int(number)) if stem and number.isdigit() else (latent, None)


def series(case: Case) -> dict[str, list[str]]:
    """The latents by the name under which their posterior is asked for."""
    found: dict[str, list[str]] = {}
    for latent in case.latents:
        found.setdefault(step_of(latent)[0], []).append(latent)
    return found


def em_of(case: Case, **options: Any) -> EM:
    return EM(case.model, case.objective, **options)


def fit_at(case: Case, params: dict[str, Tensor]) -> Fit:
    """A fit whose estimates are moved to given parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single iteration does not converge
        em = EM(case.model, case.objective, init=params, max_iter=1, accelerate=None)
        fit = em.fit(*case.args, **case.kwargs)
    return dataclasses.replace(fit, params=params)


def fitted(case: Case, **options: Any) -> Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reaching max_iter is told by other tests
        return em_of(case, tol=1e-12, max_iter=3000, **options).fit(*case.args, **case.kwargs)


def close(found: Any, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Agreement relative to the largest entry: small ones are differences of large ones."""
    found = torch.as_tensor(found, dtype=torch.float64)
    assert found.shape == expected.shape
    scale = float(expected.abs().max()) + 1e-300
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)
