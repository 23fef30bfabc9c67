"""What posteriors cost: VB-EM beside scikit-learn's, and a gradient for NUTS beside Pyro's own.

The first block has whole fits of Bayesian Gaussian mixtures with the same priors to the same bound
(both at a tight tolerance, and scikit-learn at its default as well). The second has the price of
one density with its gradient, by the plan and by Pyro's potential energy of the same model with
latents enumerated, which is what its NUTS evaluates. Each line is the median of interleaved
repeats. Run it with ``make bench``.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import initialize_model
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

from ember.inference import EM, VBEM
from ember.inference.inputs.shelter import sheltered
from ember.inference.sampling.density import PosteriorDensity
from ember.models import gaussian_mixture, hidden_markov_gaussian

REPEATS = 5


def clusters(rows: int, dim: int, components: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 4.0 * torch.randn(components, dim, generator=generator, dtype=torch.float64)
    of = torch.randint(components, (rows,), generator=generator)
    return centres[of] + torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def bayesian_mixture(rows: int, dim: int, components: int) -> None:
    """Print the line of one whole fit."""
    x = clusters(rows, dim, components)
    prior = {
        "concentration": 1.0 / components, "kappa": 1.0, "df": float(dim), "scale": x.T.cov(),
    }  # fmt: skip

    def theirs(tol: float) -> Any:
        return BayesianGaussianMixture(
            n_components=components, weight_concentration_prior_type="dirichlet_distribution",
            tol=tol, max_iter=5000, reg_covar=0.0, random_state=0,
        ).fit(x.numpy())  # fmt: skip

    def ours() -> Any:
        return VBEM(gaussian_mixture, seed=0).fit(x, components=components, prior=prior)

    seconds = interleaved([ours, lambda: theirs(1e-9), lambda: theirs(1e-3)])
    fit, tight = ours(), theirs(1e-9)
    print(
        f"{f'({rows}, {dim}, {components})':22}{seconds[0]:>9.3f} s{seconds[1]:>9.3f} s"
        f"{seconds[2]:>9.3f} s{seconds[1] / seconds[0]:>8.1f}x{fit.evaluations:>8}"
        f"{tight.n_iter_:>8}",
        flush=True,
    )


def gradient(
    name: str, model: Callable[..., None], nesting: int, x: Any, options: dict[str, Any]
) -> None:
    """Print the line of one density and its gradient."""
    plan = EM(model, mode="unconstrained", seed=0).plan(x, **options)
    with sheltered(0, (x,)):
        density = PosteriorDensity(plan)
        place = torch.zeros(len(density.coordinates), dtype=torch.float64)
        start, potential, *_ = initialize_model(
            config_enumerate(model), (x,), options, max_plate_nesting=nesting
        )
        leaves = {name: value.detach().requires_grad_() for name, value in start.items()}
        seconds = interleaved([
            lambda: density(place),
            lambda: torch.autograd.grad(potential(leaves), list(leaves.values())),
        ])  # fmt: skip
    print(
        f"{name:22}{1e3 * seconds[0]:>9.2f} ms{1e3 * seconds[1]:>9.2f} ms"
        f"{seconds[1] / seconds[0]:>8.1f}x",
        flush=True,
    )


def interleaved(works: list[Callable[[], Any]]) -> list[float]:
    """The median seconds of several pieces of work that take turns."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(REPEATS + 1):
        for own, work in zip(times, works, strict=True):
            began = time.perf_counter()
            work()
            own.append(time.perf_counter() - began)
    return [statistics.median(own[1:]) for own in times]  # the first makes what is kept


def main() -> None:
    """Print both blocks."""
    warnings.simplefilter("ignore")
    print("whole fit               VB-EM   1e-9 tol.   default   ratio  passes  theirs")
    for shape in ((272, 2, 2), (2_000, 4, 6), (50_000, 5, 5)):
        bayesian_mixture(*shape)
    print("\ndensity, gradient        plan        Pyro   ratio")
    mixture = clusters(300, 2, 3)
    gradient("mixture, 300 x 2", gaussian_mixture, 1, mixture, {"components": 3})
    gradient("mixture, 20,000 x 2", gaussian_mixture, 1, clusters(20_000, 2, 3), {"components": 3})
    gradient("chain, 300 x 2", hidden_markov_gaussian, 1, mixture, {"states": 3})


if __name__ == "__main__":
    main()
