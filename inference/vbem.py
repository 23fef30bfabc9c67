"""Variational Bayes EM: posteriors of the parameters instead of point estimates."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.initialisation.starting_params import Init, starting_params
from ember.inference.inputs.arguments import Model
from ember.inference.inputs.frames import take
from ember.inference.inputs.options import check_vbem_options
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.acceleration.em_map import EMMap
from ember.inference.iteration.acceleration.schemes import SCHEMES
from ember.inference.iteration.checks import check_rows
from ember.inference.iteration.convergence import REACHED, TOLERANCE, Monitor, StopReason
from ember.inference.iteration.kept_plan import KeptPlan, ReadingOptions, data_of
from ember.inference.iteration.loop import Loop
from ember.inference.iteration.progress import progress_bar
from ember.inference.iteration.restarts.restarts import best_of
from ember.inference.iteration.restarts.starting_points import starting_points
from ember.inference.iteration.run import Run
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.reports.explanation import Explanation, explain
from ember.inference.variational_bayes.variational_bayes import VariationalBayes
from ember.inference.variational_fit import VariationalFit

__all__ = ["VBEM"]


class VBEM:
    r"""Variational Bayes EM, on the plan that EM finds for a model.

    With :math:`q(z)\,q(\theta)` in the place of the posterior, each step raises the lower bound

    .. math::

        \mathcal L = E_q[\log p(x, z, \theta) - \log q(z) - \log q(\theta)] \le \log p(x)

    over one of the two. Parameters with a conjugate prior have their full posterior; a location
    whose prior scales with the precision of its data shares one with it (normal-gamma,
    normal-Wishart), so that without latents the bound is the evidence itself. All others are point
    estimates, maximised within the same bound; ``explain`` says which, and why.

    Compared with EM, it weighs what it knows of each component by how much data it has, and empties
    components that the data do not need where the prior of the weights has a concentration below 1.
    Its intervals are too narrow as far as latents and parameters depend on each other, which
    :math:`q` leaves out.

    Args:
        model: A Pyro function (or ``PyroModule``) that takes the data.
        integrate: As for ``EM``.
        init: As for ``EM``.
        restarts: How many starts to make; the best by the lower bound is kept.
        accelerate: As for ``EM``.
        tol: Tolerance on what is still to gain, relative to the bound.
        max_iter: The largest number of iterations for each start.
        seed: Makes the run repeatable; the global random state is untouched either way.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option has an unknown value.

    References:
        Attias (1999), *Inferring parameters and structure of latent variable models by variational
        Bayes*, UAI, 21-30; Beal (2003), *Variational algorithms for approximate Bayesian
        inference*; Bishop (2006), *Pattern Recognition and Machine Learning*, section 10.2.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def coins(heads):
        ...     weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        ...     with pyro.plate("coins", 2):
        ...         p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     with pyro.plate("rows", len(heads)):
        ...         coin = pyro.sample("coin", dist.Categorical(weights))
        ...         pyro.sample("heads", dist.Binomial(10, p[coin]), obs=heads)
        >>> fit = VBEM(coins, seed=0).fit(torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0]))
        >>> type(fit.posteriors["p"]).__name__
        'Beta'
        >>> fit.lower_bound < fit.log_likelihood
        True
    """

    def __init__(
        self,
        model: Model,
        *,
        integrate: Mapping[str, Any] | None = None,
        init: Init = "kmeans",
        restarts: int = 1,
        accelerate: str | None = "auto",
        tol: float = TOLERANCE,
        max_iter: int = 1000,
        seed: int | None = None,
        progress: bool = False,
    ) -> None:
        check_vbem_options(
            model=model, integrate=integrate, init=init, restarts=restarts, accelerate=accelerate,
            tol=tol, max_iter=max_iter, seed=seed,
        )  # fmt: skip
        self.model, self.integrate, self.init = model, dict(integrate or {}), init
        self.restarts, self.accelerate, self.tol = restarts, accelerate, tol
        self.max_iter, self.seed, self.progress = max_iter, seed, progress
        self._kept = KeptPlan()

    @property
    def name(self) -> str:
        """How tables and pictures call this method."""
        return "VB-EM"

    # -- the steps by hand ----------------------------------------------------------------------

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """The model, read for these arguments; the steps take it in their place."""
        args, kwargs, _ = take(self.model, args, kwargs)
        with sheltered(self.seed, (args, kwargs)):
            return self._options.read(args, kwargs)

    def initialise(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Posteriors to start from: the means by site, and beside each how sure it is."""
        args, kwargs, _ = take(self.model, args, kwargs)
        with sheltered(self.seed, data_of(args, kwargs)):
            plan = self._kept.plan_for(self._options, args, kwargs)
            return VariationalBayes.of(plan).start(starting_params(plan, self.init))

    def e_step(self, state: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Statistics:
        """Expected sufficient statistics of data under posteriors; ``.objective`` is the bound."""
        args, kwargs, _ = take(self.model, args, kwargs)
        with sheltered(self.seed, data_of(args, kwargs)):
            bayes = VariationalBayes.of(self._kept.plan_for(self._options, args, kwargs))
            bayes.check(state)
            statistics = bayes.evidence.statistics(state)
            return dataclasses.replace(statistics, m_step=bayes.m_step)

    def m_step(self, stats: Statistics) -> dict[str, Tensor]:
        """The posteriors that maximise the bound given what is expected of the latents."""
        if not isinstance(stats, Statistics) or stats.m_step is None:
            raise TypeError(f"m_step takes what e_step returns, not {type(stats).__name__}.")
        with sheltered(self.seed, stats.params):
            return stats.m_step(stats)

    # -- the loop -------------------------------------------------------------------------------

    def fit(self, *args: Any, **kwargs: Any) -> VariationalFit:
        """Runs variational Bayes on the model's own arguments, and keeps the best result.

        Raises:
            ValueError: If the model or its data cannot be handled; the message names the site.
        """
        began = time.perf_counter()
        args, kwargs, recipe = take(self.model, args, kwargs)
        with sheltered(self.seed, (args, kwargs)):
            plan, misread = self._options.read(args, kwargs), set[str]()
            while True:
                run = self._fit(plan, began)
                sites = plan.misread_sites(VariationalBayes.of(plan).means(run.params))
                if not sites or run.stop is StopReason.INTERRUPTED:
                    break
                misread.update(sites)
                plan = self._options.read(args, kwargs, misread)
            fit = self._result(plan, run)
        fit = fit.with_names(args, kwargs, recipe)
        return dataclasses.replace(fit, seconds=time.perf_counter() - began)

    def _fit(self, plan: Plan, began: float) -> Run:
        """The best run from all starts."""
        check_rows(plan)
        if plan.on_nodes:
            raise ValueError(
                f"latent site '{min(plan.on_nodes)}' is integrated on nodes, which follow point "
                "estimates of its prior; use EM."
            )
        bayes = VariationalBayes.of(plan)
        if not bayes.posteriors:
            reasons = "; ".join(f"'{name}': {why}" for name, why in bayes.points.items())
            raise ValueError(f"no parameter has a conjugate posterior ({reasons}); use EM or SVI.")
        starts = [
            dataclasses.replace(start, params=bayes.start(start.params))
            for start in starting_points(plan, self.init, self.restarts, ())
        ]
        run = functools.partial(self._run, bayes)
        close = REACHED * (self.tol or TOLERANCE)
        return best_of(bayes.plan, starts, run, self.max_iter, close, began, at_once=False)

    def _run(self, bayes: VariationalBayes, way: Trajectory, limit: int) -> Run:
        """The run from one start."""
        em_map = EMMap(
            bayes.evidence.statistics,
            bayes.m_step,
            Coordinates(bayes.plan.structure.parameters),
            bayes.start_of,
        )
        with progress_bar(self.progress, limit, self.name) as tick:
            loop = Loop(
                bayes.plan,
                em_map,
                Monitor(self.tol) if self.tol else None,
                SCHEMES[self.accelerate],
                on_step=lambda way: tick(way.history[-1]),
                method=self.name,
            )
            return loop(way, limit)

    def _result(self, plan: Plan, run: Run) -> VariationalFit:
        """The run's last posteriors, and what the model says at their means."""
        bayes, state = VariationalBayes.of(plan), run.params
        if isinstance(self.init, str):
            state = bayes.in_canonical_order(state)
        params = bayes.means(state)
        at_means = LogEvidence.of(plan).statistics(params)
        known = {
            **vars(run),
            "params": params,
            "plan": plan,
            "log_likelihood": at_means.log_likelihood,
            "log_posterior": at_means.objective,
        }
        sizes = {name: value for name, value in state.items() if name not in params}
        return VariationalFit(**known, sizes=sizes)

    # -- the plan -------------------------------------------------------------------------------

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """The plan as a table; the M-step of a parameter is a posterior, or why it is a point."""
        args, kwargs, _ = take(self.model, args, kwargs)
        with sheltered(self.seed, data_of(args, kwargs)):
            plan = self._kept.plan_for(self._options, args, kwargs)
            bayes = VariationalBayes.of(plan)
            table = explain(plan)
            for name, posterior in bayes.posteriors.items():
                table.loc[table["site"] == name, "M-step"] = posterior.description
            for name, why in bayes.points.items():
                rows = table["site"] == name
                table.loc[rows, ["M-step", "why"]] = ["point, numerical", why]
            return table

    @property
    def _options(self) -> ReadingOptions:
        return ReadingOptions(self.model, "map", "constrained", dict(self.integrate))
