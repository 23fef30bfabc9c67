"""``NUTS`` and ``Laplace``: the posterior of the parameters around the estimate of EM."""

import dataclasses
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint

from ember.inference.em import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.fit import Fit
from ember.inference.initialisation.starting_params import Init
from ember.inference.inputs.arguments import Model
from ember.inference.inputs.options import check_count
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.progress import progress_bar
from ember.inference.plan.plan import Plan
from ember.inference.sampled_fit import SampledFit
from ember.inference.sampling.chains import Chain, run_chain
from ember.inference.sampling.density import PosteriorDensity
from ember.inference.sampling.labels import relabelled
from ember.inference.sampling.normal_approximation import (
    NormalApproximation,
    normal_approximation,
)

__all__ = ["NUTS", "Laplace"]


class _Drawn(NamedTuple):
    """Free vectors ``(chains, n, P)``, log densities ``(chains, n)``, and what is said of them.

    ``stop`` is the reason why the chains ended; None without any.
    """

    draws: Tensor
    heights: Tensor
    divergences: int = 0
    log_evidence: float = math.nan
    stop: StopReason | None = None


class _AroundTheMode(ABC):
    """What the two have in common: EM's mode in unconstrained coordinates comes first."""

    name: str

    def __init__(
        self,
        model: Model,
        integrate: Mapping[str, Any] | None,
        init: Init,
        restarts: int,
        seed: int | None,
        progress: bool,
    ) -> None:
        self._em = EM(
            model, mode="unconstrained", integrate=integrate, init=init, restarts=restarts,
            seed=seed, progress=progress,
        )  # fmt: skip
        self.model, self.seed, self.progress = model, seed, progress

    def fit(self, *args: Any, **kwargs: Any) -> SampledFit:
        """Finds the mode, and draws from the posterior of the model's parameters around it.

        Raises:
            ValueError: If the model or its data cannot be handled; the message names the site.
        """
        began = time.perf_counter()
        mode = self._em.fit(*args, **kwargs)
        plan = mode.plan
        _check_priors(plan, self.name)
        with sheltered(self.seed, (args, kwargs)):
            density = PosteriorDensity(plan)
            around = normal_approximation(density, density.coordinates.flatten(mode.params))
            drawn = self._draw(density, around)
            fit = self._result(mode, density, drawn)
        fit = fit.with_names(args, kwargs)
        return dataclasses.replace(fit, seconds=time.perf_counter() - began)

    @abstractmethod
    def _draw(self, density: PosteriorDensity, around: NormalApproximation) -> _Drawn:
        """Draws from the posterior."""

    def _result(self, mode: Fit, density: PosteriorDensity, drawn: _Drawn) -> SampledFit:
        """The fit that the draws make."""
        plan, shape = mode.plan, drawn.draws.shape[:2]
        with torch.no_grad():
            flat = density.coordinates.unflatten(drawn.draws.flatten(0, 1))
            flat = relabelled(plan, flat, mode.params)
            supports = {name: p.support for name, p in plan.structure.parameters.items()}
            params = {name: _centre(value, supports[name]) for name, value in flat.items()}
            at_means = LogEvidence.of(plan).statistics(params)
        known = {
            **{f.name: getattr(mode, f.name) for f in dataclasses.fields(Fit) if f.init},
            "method": self.name,
            "params": params,
            "log_likelihood": at_means.log_likelihood,
            "log_posterior": at_means.objective,
            "evaluations": mode.evaluations + density.evaluations,
            "stop": drawn.stop or mode.stop,
        }
        return SampledFit(
            **known,
            draws={name: value.unflatten(0, shape) for name, value in flat.items()},
            heights=drawn.heights,
            divergences=drawn.divergences,
            log_evidence=drawn.log_evidence,
        )


class Laplace(_AroundTheMode):
    r"""Laplace's approximation: a normal posterior in unconstrained coordinates, around the mode.

    Latents are integrated out as EM does, so that the approximation is of the parameters alone. It
    says as well how probable the data are under the model,

    .. math:: \log p(x) \approx \log p(x, \hat u) + \tfrac{P}{2} \log 2\pi - \tfrac12 \log |H|.

    Args:
        model: A Pyro function (or ``PyroModule``) that takes the data.
        draws: How many draws.
        integrate: As for ``EM``.
        init: As for ``EM``.
        restarts: As for ``EM``.
        seed: Makes the run repeatable; the global random state is untouched either way.
        progress: Whether to show a progress bar.

    Reference:
        Tierney & Kadane (1986), *Accurate approximations for posterior moments and marginal
        densities*, JASA 81, 82-86.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     with pyro.plate("rows", len(heads)):
        ...         pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> fit = Laplace(coin, seed=0).fit(torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0]))
        >>> round(fit.log_evidence, 2)
        -11.8
    """

    name = "Laplace"

    def __init__(
        self,
        model: Model,
        *,
        draws: int = 2000,
        integrate: Mapping[str, Any] | None = None,
        init: Init = "kmeans",
        restarts: int = 1,
        seed: int | None = None,
        progress: bool = False,
    ) -> None:
        check_count("draws", draws)
        super().__init__(model, integrate, init, restarts, seed, progress)
        self.draws = draws

    def _draw(self, density: PosteriorDensity, around: NormalApproximation) -> _Drawn:
        if not around.is_proper:
            raise ValueError(
                "the posterior density does not fall in every direction around the mode, so it has "
                "no Laplace approximation; give priors to what the data leave open, or use NUTS."
            )
        normals = torch.randn(1, self.draws, len(around.mode), dtype=around.mode.dtype)
        heights = around.height - 0.5 * normals.square().sum(-1)
        return _Drawn(around.at(normals), heights, log_evidence=around.log_evidence)


class NUTS(_AroundTheMode):
    """Markov chains by Pyro's NUTS on the posterior of the parameters, latents integrated out.

    Each evaluation of the density and its gradient is one E-step of EM's plan, and no Pyro code
    runs inside. The chains start around EM's mode and move in coordinates in which Laplace's
    approximation is round, so they need little warm-up. States of latents are numbered in every
    draw as at the mode. What lies far from the mode, another mode above all, may never be visited.

    Args:
        model: A Pyro function (or ``PyroModule``) that takes the data.
        draws: How many draws each chain keeps.
        warmup: How many it makes before, while the step size is found.
        chains: How many chains.
        acceptance: The acceptance probability that the step size aims at.
        integrate: As for ``EM``.
        init: As for ``EM``.
        restarts: As for ``EM``: starts of the search for the mode.
        seed: Makes the run repeatable; the global random state is untouched either way.
        progress: Whether to show progress bars.

    Reference:
        Hoffman & Gelman (2014), *The No-U-Turn sampler: adaptively setting path lengths in
        Hamiltonian Monte Carlo*, JMLR 15, 1593-1623.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     with pyro.plate("rows", len(heads)):
        ...         pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> method = NUTS(coin, draws=200, warmup=50, chains=2, seed=0)
        >>> fit = method.fit(torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0]))
        >>> fit.draws["p"].shape, bool(abs(fit.params["p"] - 35 / 54) < 0.02)
        (torch.Size([2, 200]), True)
    """

    name = "NUTS"

    def __init__(
        self,
        model: Model,
        *,
        draws: int = 500,
        warmup: int = 200,
        chains: int = 4,
        acceptance: float = 0.8,
        integrate: Mapping[str, Any] | None = None,
        init: Init = "kmeans",
        restarts: int = 1,
        seed: int | None = None,
        progress: bool = False,
    ) -> None:
        for option, value in (("draws", draws), ("warmup", warmup), ("chains", chains)):
            check_count(option, value)
        if not isinstance(acceptance, int | float) or not 0.0 < acceptance < 1.0:
            raise ValueError(f"acceptance={acceptance!r} must lie between 0 and 1, as 0.8 does.")
        super().__init__(model, integrate, init, restarts, seed, progress)
        self.draws, self.warmup, self.chains = draws, warmup, chains
        self.acceptance = acceptance

    def _draw(self, density: PosteriorDensity, around: NormalApproximation) -> _Drawn:
        """Chain after chain; an interrupt keeps those that are finished."""
        seeds = torch.randint(2**31, (self.chains,)).tolist()
        done, stop = list[Chain](), StopReason.STEPS
        total = self.chains * (self.warmup + self.draws)
        with progress_bar(self.progress, total, self.name) as tick:
            try:
                for seed in seeds:
                    done.append(
                        run_chain(
                            density, around, self.draws, self.warmup, self.acceptance, seed, tick
                        )
                    )
            except KeyboardInterrupt:
                if not done:
                    raise
                stop = StopReason.INTERRUPTED
        return _Drawn(
            torch.stack([chain.draws for chain in done]),
            torch.stack([chain.heights for chain in done]),
            sum(chain.divergences for chain in done),
            stop=stop,
        )


def _centre(draws: Tensor, support: Constraint) -> Tensor:
    """The mean of draws ``(M, ...)``; where it would leave the support, that of free reals."""
    mean = draws.mean(0)
    if bool(support.check(mean).all()):
        return mean
    free = biject_to(support)
    inside: Tensor = free(free.inv(draws).mean(0))
    return inside


def _check_priors(plan: Plan, method: str) -> None:
    """Refuses parameters without a prior, and a model without parameters.

    Raises:
        ValueError: Naming one of them.
    """
    if not plan.structure.parameters:
        raise ValueError(f"the model has no parameters, so there is nothing for {method} to draw.")
    for name, parameter in plan.structure.parameters.items():
        if not parameter.has_prior:
            raise ValueError(
                f"parameter '{name}' is a pyro.param statement, which has no prior and so no "
                f"posterior; {method} needs a pyro.sample statement."
            )
