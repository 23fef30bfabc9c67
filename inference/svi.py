"""The same models through Pyro's stochastic variational inference, for comparison with EM."""

import copy
import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import pyro
import torch
from pyro.infer import config_enumerate
from pyro.optim import PyroOptim
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.fit import Fit
from ember.inference.initialisation.starting_params import Init
from ember.inference.inputs.arguments import Model, prepare
from ember.inference.inputs.frames import take
from ember.inference.inputs.options import check_svi_options
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.checks import check_rows, warn_of_cuts
from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.progress import progress_bar
from ember.inference.maximisation.updates import check_settable
from ember.inference.plan.building import build_plan
from ember.inference.plan.columns import check_codes
from ember.inference.plan.plan import Plan
from ember.inference.queries.on_nodes import node_gaps
from ember.inference.queries.units import unit_gaps
from ember.inference.variational.elbo import GuideFunction, NonFiniteLoss, PlanELBO
from ember.inference.variational.gaussian_starts import gaussian_starts
from ember.inference.variational.guided_latents import (
    latents_to_guide,
    starting_values,
    with_guided_latents,
)
from ember.inference.variational.guides import (
    Guide,
    LearntGuide,
    check_guide,
    guide_name,
    make_guide,
    point_estimate,
)
from ember.inference.variational.interior import moved_inside
from ember.inference.variational.param_store import declare, learnt, restore
from ember.inference.variational.step_sizes import ScaledAdam, lengths_by_name

__all__ = ["SVI"]


LEARNING_RATE = 0.05
FINAL_RATE = 1e-4  # the learning rate after the last step, relative to the first


class SVI:
    r"""Fits a latent-variable model written in Pyro by ``pyro.infer.SVI``.

    The guide ``q`` covers the parameters, and Gaussian latents and those on nodes as guides of Pyro
    do; discrete latent sites are summed out exactly, as under ``TraceEnum_ELBO``, and so are
    latents with conjugate priors. Stochastic gradient steps raise the evidence lower bound

    .. math:: \mathcal{L}(q) = \mathbb{E}_{q(\theta)}\bigl[\log p(x, \theta)
        - \log q(\theta)\bigr].

    With ``guide="delta"`` the bound is the log posterior density itself, so its optimum is EM's
    with ``objective="map"``. Where it has continuous latents to cover, independent normals stand
    beside the delta, and the bound lies below the log posterior density by as much as the latents'
    posterior differs from those; ``integrate={"site": ...}`` integrates them out as EM does
    instead. ``fit.log_likelihood`` has all latents integrated out, whatever the guide covers. It
    starts where EM starts, drawn inside where that is on the boundary of a support. ``pyro.param``
    statements of the model are optimised as well.

    Args:
        model: A Pyro function (or ``PyroModule``) that takes the data.
        guide: "delta" (a point), "normal" (independent normals in unconstrained space),
            "multivariate_normal", an ``AutoGuide`` class or instance, or a guide function over
            the parameter sites. An instance is copied, so it stays as it is.
        steps: Number of gradient steps; all of them are taken.
        optim: A ``pyro.optim`` optimiser; by default Adam with steps in the natural units of each
            coordinate and a learning rate that falls exponentially over ``steps``.
        init: Where to start; the same choices as for ``EM``. A guide of your own, if it is not an
            ``AutoGuide`` class, starts where it says.
        learning_rate: First step of the default optimiser, in natural units; 0.05 unless given.
        particles: Draws from the guide for each step.
        seed: Makes the run repeatable; the global random state is untouched either way.
        progress: Whether to show a progress bar.
        integrate: Continuous latents that are integrated out, by ``{"site": "gaussian"}`` or
            ``{"site": "quadrature"}`` as for ``EM``, instead of being covered by the guide; with
            None a site is a parameter. A guide of your own says by what it samples which of them
            it covers.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option has an unknown value.

    Reference:
        Bingham et al. (2019), *Pyro: deep universal probabilistic programming*, JMLR 20(28), 1-6.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def coins(heads):
        ...     weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(2)))
        ...     with pyro.plate("coins", 2):
        ...         p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     with pyro.plate("rows", len(heads)):
        ...         coin = pyro.sample("coin", dist.Categorical(weights))
        ...         pyro.sample("heads", dist.Binomial(10, p[coin]), obs=heads)
        >>> fit = SVI(coins, steps=200, seed=0).fit(torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0]))
        >>> fit.iterations, fit.stop_reason
        (200, 'finished: all steps were taken')
    """

    def __init__(
        self,
        model: Model,
        guide: Guide = "delta",
        *,
        steps: int = 2000,
        optim: PyroOptim | None = None,
        init: Init = "kmeans",
        learning_rate: float | None = None,
        particles: int = 1,
        seed: int | None = None,
        progress: bool = False,
        integrate: Mapping[str, Any] | None = None,
    ) -> None:
        check_svi_options(
            model=model, steps=steps, optim=optim, init=init, learning_rate=learning_rate,
            particles=particles, integrate=integrate, seed=seed,
        )  # fmt: skip
        check_guide(guide)
        self.model, self.guide, self.steps, self.optim = model, guide, steps, optim
        self.init, self.learning_rate, self.particles = init, learning_rate, particles
        self.seed, self.progress, self.integrate = seed, progress, dict(integrate or {})

    @property
    def name(self) -> str:
        """How tables and pictures call this method."""
        return f"SVI ({guide_name(self.guide)})"

    def fit(self, *args: object, **kwargs: object) -> Fit:
        """Takes all steps on the model's own arguments, from the start that ``init`` names.

        Returns:
            A ``Fit``. Its ``params`` are the delta's value, or the median of a normal guide;
            ``log_likelihood`` and ``log_posterior`` are those of ``params``, continuous latents
            integrated out as in EM; ``history`` is the evidence lower bound at the start and after
            each step. ``posterior_samples(n)`` draws from the guide.

        Raises:
            ValueError: If the model, its data or the guide cannot be handled; the message names
                the site.
        """
        began = time.perf_counter()
        args, kwargs, recipe = take(self.model, args, kwargs)
        with sheltered(self.seed, (args, kwargs)):
            model = self.model
            if isinstance(model, torch.nn.Module):
                model = copy.deepcopy(model).double()  # training must not touch the user's own
            fit, misread = self._attempt(model, args, kwargs, began), set[str]()
            # A model that branches where no probe was has been misread: fit it again.
            while wrong := fit.plan.misread_sites(fit.params):
                misread.update(wrong)
                pyro.get_param_store().clear()
                fit = self._attempt(model, args, kwargs, began, misread)
        fit = fit.with_names(args, kwargs, recipe)
        return dataclasses.replace(fit, seconds=time.perf_counter() - began)

    def _attempt(
        self,
        model: Model,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        began: float,
        misread: Collection[str] = (),
    ) -> Fit:
        marginal = build_plan(model, prepare(args, kwargs), "map", self.integrate, misread=misread)
        check_codes(marginal, (*args, *kwargs.values()))
        asked = {name for name, how in self.integrate.items() if how is not None}
        guided = latents_to_guide(self.guide, marginal, asked)
        plan = with_guided_latents(marginal, guided)
        check_rows(plan)
        check_settable(plan)
        warn_of_cuts(plan, 4)
        start, spread = starting_values(marginal, plan, self.init)
        start = moved_inside(plan.structure.parameters, start)
        latents = gaussian_starts(plan, start, asked)
        spread |= {name: deviation for name, (_, deviation) in latents.items()}
        covered = {n: mean for n, (mean, _) in latents.items()} | {n: start[n] for n in guided}
        guide = make_guide(self.guide, plan, start, covered)
        return self._run(plan, marginal, guide, start, began, spread)

    def _run(
        self,
        plan: Plan,
        marginal: Plan,
        guide: GuideFunction,
        start: Mapping[str, Tensor],
        began: float,
        spread: Mapping[str, Tensor],
    ) -> Fit:
        declare(plan.structure.parameters, start)
        elbo = PlanELBO(plan, self.particles)
        optim = copy.deepcopy(self.optim) or self._default_optimiser(plan, guide, start, spread)
        arguments = plan.structure.arguments
        svi = pyro.infer.SVI(
            config_enumerate(plan.structure.model),
            # Bound here, an argument of the model's may have a name that Pyro uses too.
            functools.partial(guide, *arguments.args, **arguments.kwargs),
            optim,
            loss=elbo.loss,
            loss_and_grads=elbo.loss_and_grads,
        )
        history, times, reason = self._climb(svi, began)
        return self._fit(plan, marginal, guide, history, times, reason, elbo.evaluations)

    def _climb(
        self, svi: pyro.infer.SVI, began: float
    ) -> tuple[list[float], list[float], StopReason]:
        """Takes all steps: the bound where each begins and at the end, the times, and why it ended.

        What has been learnt is left in the parameter store, as it was where the bound was finite.
        """
        history: list[float] = []
        times: list[float] = []
        reason, good = StopReason.STEPS, learnt()
        with progress_bar(self.progress, self.steps, self.name) as tick:
            try:
                for _ in range(self.steps):
                    before = learnt()
                    # A step reports the bound where it begins.
                    history.append(-svi.step())
                    times.append(time.perf_counter() - began)
                    good = before
                    tick(history[-1])
                last = learnt()
                bound = -svi.evaluate_loss()
                if not math.isfinite(bound):
                    raise NonFiniteLoss
                history.append(bound)
                times.append(time.perf_counter() - began)
                good = last
            except (NonFiniteLoss, ValueError, LinAlgError) as error:
                # Pyro's own checks refuse a NaN with a ValueError before the loss is known.
                if not history:
                    raise ValueError(
                        "the evidence lower bound is not finite at the start; start elsewhere "
                        "with init={...}, or check the model's supports."
                    ) from error
                reason = StopReason.NON_FINITE
        restore(good)
        return history, times, reason

    def _fit(
        self,
        plan: Plan,
        marginal: Plan,
        guide: GuideFunction,
        history: list[float],
        times: list[float],
        reason: StopReason,
        evaluations: int,
    ) -> Fit:
        every = point_estimate(guide, plan)
        params = {name: every[name] for name in marginal.structure.parameters}
        with torch.no_grad():
            log_likelihood = float(LogEvidence.of(marginal)(params))
            log_prior = float(marginal.prior.log_prob(params))
        warning = ""
        if reason is StopReason.NON_FINITE:
            warning = f"{self.name}: {reason.value}; lower learning_rate or start elsewhere"
            warnings.warn(warning, RuntimeWarning, stacklevel=5)
        values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
        choice = self.guide if isinstance(self.guide, str) else None
        return Fit(
            method=self.name,
            objective="map",
            params=params,
            log_likelihood=log_likelihood,
            log_posterior=log_likelihood + log_prior,
            history=torch.tensor(history, dtype=torch.float64),
            times=torch.tensor(times, dtype=torch.float64),
            evaluations=evaluations,
            stop=reason,
            plan=marginal,
            warning=warning,
            guide=LearntGuide(guide, values, plan, _guided(marginal) - _guided(plan), choice),
            node_gaps={**node_gaps(marginal, params), **unit_gaps(marginal, params)},
        )

    def _default_optimiser(
        self,
        plan: Plan,
        guide: GuideFunction,
        start: Mapping[str, Tensor],
        spread: Mapping[str, Tensor],
    ) -> PyroOptim:
        rate = LEARNING_RATE if self.learning_rate is None else self.learning_rate
        fixed = {"lr": rate, "lrd": FINAL_RATE ** (1.0 / self.steps)}
        lengths = lengths_by_name(plan, guide, start, spread)
        return PyroOptim(ScaledAdam, lambda name: {**fixed, "length": lengths.get(name, 1.0)})


def _guided(plan: Plan) -> frozenset[str]:
    """The latents on nodes, of either kind."""
    return plan.on_nodes | plan.of_units
