"""Normal rows with an ill-conditioned matrix: densities by a factor, never by an inverse."""

from typing import Any

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM

ARGUMENTS = ["covariance_matrix", "scale_tril", "precision_matrix"]


def normal(loc: Tensor, argument: str, matrix: Tensor) -> Any:
    options: dict[str, Any] = {argument: matrix}
    return dist.MultivariateNormal(loc, **options)


def known(x: Tensor, argument: str, matrix: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", normal(loc, argument, matrix), obs=x)


def ill_conditioned(condition: float) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Matrices of one distribution by each argument, rows of it and a location."""
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(4, 4)))[0]
    values = np.geomspace(1.0, 1.0 / condition, 4)
    covariance = torch.tensor(basis * values @ basis.T)
    covariance = (covariance + covariance.mT) / 2
    precision = torch.tensor(basis / values @ basis.T)
    factor = torch.linalg.cholesky(covariance)
    x = torch.tensor(generator.normal(size=(30, 4))) @ factor.mT
    matrices = (covariance, factor, (precision + precision.mT) / 2)
    return dict(zip(ARGUMENTS, matrices, strict=True)), x, torch.tensor([1e-3, -1e-3, 0.0, 2e-3])


@pytest.mark.parametrize("condition", [1e4, 1e9, 1e12])
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_known_matrix_agrees_with_pyro(argument: str, condition: float) -> None:
    matrices, x, loc = ill_conditioned(condition)
    matrix = matrices[argument]
    truth = normal(loc, argument, matrix).log_prob(x).sum()
    found = EM(known).e_step({"loc": loc}, x, argument, matrix).log_likelihood
    # Of a precision, Pyro and Ember take factors of their own, each exact to the last digit of P.
    error = 1e-9 if argument != "precision_matrix" else 1e-15 * condition
    assert found == pytest.approx(float(truth), rel=1e-9, abs=max(1e-9, error))


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_rows_with_gaps_under_a_known_matrix(argument: str) -> None:
    matrices, x, loc = ill_conditioned(1e8)
    x[::3, 1] = torch.nan
    x[1::3, 3] = torch.nan
    with mpmath.workdps(50):
        matrix = mpmath.matrix(matrices[argument].tolist())
        covariance = {
            "covariance_matrix": lambda: matrix,
            "scale_tril": lambda: matrix * matrix.T,
            "precision_matrix": lambda: matrix**-1,
        }[argument]()
        truth = float(sum(_log_prob(row, loc.tolist(), covariance) for row in x.tolist()))
    found = EM(known).e_step({"loc": loc}, x, argument, matrices[argument]).log_likelihood
    # To the last digit of the entries of the matrix itself.
    assert found == pytest.approx(truth, rel=1e-9, abs=1e-14 * 1e8)


def _log_prob(row: list[float], loc: list[float], covariance: Any) -> Any:
    shown = [i for i, value in enumerate(row) if value == value]
    block = mpmath.matrix([[covariance[i, j] for j in shown] for i in shown])
    residual = mpmath.matrix([mpmath.mpf(row[i]) - loc[i] for i in shown])
    square = (residual.T * block**-1 * residual)[0]
    return -(mpmath.log(mpmath.det(block)) + square + len(shown) * mpmath.log(2 * mpmath.pi)) / 2


@pytest.mark.parametrize("argument", ["covariance_matrix", "scale_tril"])
def test_estimated_covariance_of_columns_that_all_but_determine_each_other(argument: str) -> None:
    matrices, x, _ = ill_conditioned(1e9)

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(4))
        lower = constraints.lower_cholesky
        support = lower if argument == "scale_tril" else constraints.positive_definite
        matrix = pyro.param("matrix", torch.eye(4), constraint=support)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", normal(loc, argument, matrix), obs=x)

    # Equivariance: whitened rows have a covariance without trouble.
    factor = matrices["scale_tril"]
    white = torch.linalg.solve_triangular(factor, x.mT, upper=False).mT.numpy()
    determinant = np.linalg.slogdet(np.cov(white.T, bias=True))[1]
    determinant += 2.0 * float(factor.diagonal().log().sum())
    maximum = -0.5 * len(x) * (determinant + 4 + 4 * np.log(2 * np.pi))
    fit = EM(model, "mle").fit(x)
    assert fit.log_likelihood == pytest.approx(maximum, rel=1e-8)
