"""mpmath, with 50 digits and no logarithms of sums, as oracle where float64 runs out of room.

The formulas are the definitions: products and sums of densities that may be as small as 1e-40000.
"""

from typing import Any

import numpy as np
import pytest
import torch

from ember.models import bernoulli_mixture, gaussian_mixture, hidden_markov_poisson, poisson_mixture
from tests.peers.common import EARTHQUAKES, at, equal

mpmath = pytest.importorskip("mpmath")
mp = mpmath.mp


@pytest.fixture(autouse=True)
def _digits() -> Any:
    with mpmath.workdps(50):
        yield


def normal(x: Any, loc: Any, precision: Any) -> Any:
    """The density of independent normals."""
    density = mp.mpf(1)
    for value, mean, p in zip(x, loc, precision, strict=True):
        value, mean, p = mp.mpf(float(value)), mp.mpf(float(mean)), mp.mpf(float(p))
        density *= mp.sqrt(p / (2 * mp.pi)) * mp.exp(-p * (value - mean) ** 2 / 2)
    return density


def poisson(x: Any, rates: Any) -> Any:
    density = mp.mpf(1)
    for value, rate in zip(np.atleast_1d(x), np.atleast_1d(rates), strict=True):
        rate = mp.mpf(float(rate))
        density *= rate ** int(value) * mp.exp(-rate) / mp.factorial(int(value))
    return density


def check_mixture(
    model: Any,
    density: Any,
    x: Any,
    params: dict[str, Any],
    tolerance: float = 1e-11,
    **options: Any,
) -> None:
    """Row densities, their sum and the responsibilities, against weighted sums of densities."""
    ours = at(model, params, torch.from_numpy(x), components=len(params["weights"]), **options)
    joint = [
        [mp.mpf(float(w)) * density(row, k) for k, w in enumerate(params["weights"])] for row in x
    ]
    rows = [mp.log(sum(terms)) for terms in joint]
    equal(ours.log_prob(), [float(v) for v in rows], tolerance)
    equal(ours.log_likelihood, float(sum(rows)), tolerance)
    shares = [[float(term / sum(terms)) for term in terms] for terms in joint]
    np.testing.assert_allclose(
        ours.posterior("assignment").probs.numpy(), shares, atol=10 * tolerance
    )


def test_gaussian_rows_far_from_every_component() -> None:
    """Densities down to exp(-50000), precisions 10 orders apart, one weight of 1e-12.

    A density comes from sums of squares about the mean of the data, which costs digits where a
    component is much tighter than the data: errors grow as precision times squared spread.
    """
    x = np.array([[0.0, 0.0], [1e-4, -1e-4], [300.0, -100.0], [5.0, 5.0], [4.9, 5.2], [-1.0, 40.0]])
    params = {
        "weights": np.array([1e-12, 0.4, 0.6 - 1e-12]),
        "locs": np.array([[0.0, 0.0], [5.0, 5.0], [5.0, 5.1]]),
        "precisions": np.array([[1e2, 1e2], [1.0, 2.0], [1e-8, 0.3]]),
    }

    def density(row: Any, k: int) -> Any:
        return normal(row, params["locs"][k], params["precisions"][k])

    check_mixture(gaussian_mixture, density, x, params, 1e-10, covariance="diag")
    params["precisions"][0] = 1e8  # a standard deviation of 1e-6 of the data's
    rounding = 1e8 * float(np.square(x - x.mean(0)).max()) * np.finfo(float).eps
    check_mixture(gaussian_mixture, density, x, params, rounding, covariance="diag")


def test_gaussian_rows_far_from_the_origin() -> None:
    """Squares of 1e6 leave 4 digits of a spread of 1; centred, they leave all."""
    x = 1e6 + np.array([[0.0], [0.7], [-0.4], [3.1], [2.9], [3.3]])
    params = {
        "weights": np.array([0.5, 0.5]),
        "locs": 1e6 + np.array([[0.125], [3.0]]),
        "precisions": np.array([[4.0], [16.0]]),
    }

    def density(row: Any, k: int) -> Any:
        return normal(row, params["locs"][k], params["precisions"][k])

    check_mixture(gaussian_mixture, density, x, params, covariance="diag")


def test_large_counts() -> None:
    x = np.array([[0.0, 20_000.0], [3.0, 19_500.0], [900.0, 2.0], [0.0, 0.0], [1.0, 700.0]])
    params = {
        "weights": np.array([0.3, 0.7]),
        "rates": np.array([[0.01, 2e4], [800.0, 1e-6]]),
    }

    def density(row: Any, k: int) -> Any:
        return poisson(row, params["rates"][k])

    check_mixture(poisson_mixture, density, x, params)


def test_answers_that_are_almost_impossible() -> None:
    generator = np.random.default_rng(1)
    x = (generator.random((5, 30)) < 0.5).astype(float)
    probs = np.array([np.full(30, 1e-14), np.full(30, 1.0 - 1e-12), np.linspace(1e-9, 0.5, 30)])
    params = {"weights": np.array([0.98, 0.01, 0.01]), "probs": probs}

    def density(row: Any, k: int) -> Any:
        product = mp.mpf(1)
        for value, p in zip(row, params["probs"][k], strict=True):
            product *= mp.mpf(float(p)) if value else 1 - mp.mpf(float(p))
        return product

    check_mixture(bernoulli_mixture, density, x, params)


@pytest.mark.parametrize("extreme", [False, True])
def test_chain_forwards_in_50_digits(extreme: bool) -> None:
    """The sum over paths by products; extreme: states almost never left, rates far off."""
    x = EARTHQUAKES[:60]
    rates = np.array([0.001, 20.0, 3000.0]) if extreme else np.array([13.0, 20.0, 30.0])
    stay = 1.0 - 1e-13 if extreme else 0.9
    transition = np.full((3, 3), (1.0 - stay) / 2.0)
    np.fill_diagonal(transition, stay)
    transition /= transition.sum(1, keepdims=True)
    initial = np.array([0.5, 0.25, 0.25])
    params = {"initial": initial, "transition": transition, "rates": rates}
    ours = at(hidden_markov_poisson, params, torch.from_numpy(x), states=3)

    emitted = [mp.diag([poisson(value, rate) for rate in rates]) for value in x]
    move = mp.matrix(transition.tolist())
    forward = [mp.matrix([initial.tolist()]) * emitted[0]]
    for density in emitted[1:]:
        forward.append(forward[-1] * move * density)
    backward = [mp.matrix([1, 1, 1])]
    for density in reversed(emitted[1:]):
        backward.insert(0, move * density * backward[0])
    evidence = mpmath.fsum(forward[-1])
    equal(ours.log_likelihood, float(mp.log(evidence)), 1e-11)
    smoothed = [
        [float(f[0, k] * b[k, 0] / evidence) for k in range(3)]
        for f, b in zip(forward, backward, strict=True)
    ]
    np.testing.assert_allclose(ours.posterior("state").probs.numpy(), smoothed, atol=1e-10)
