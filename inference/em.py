"""Expectation-maximisation for Pyro models: initialise, E-step, M-step, check convergence."""

import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from ember.inference.batches import Batches
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.fit import Fit
from ember.inference.initialisation.given_params import check_params
from ember.inference.initialisation.starting_params import Init, starting_params
from ember.inference.inputs.arguments import Model
from ember.inference.inputs.frames import take
from ember.inference.inputs.options import check_em_options
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.acceleration.em_map import EMMap
from ember.inference.iteration.acceleration.schemes import scheme_for
from ember.inference.iteration.checks import check_rows
from ember.inference.iteration.convergence import REACHED, TOLERANCE, Monitor, StopReason
from ember.inference.iteration.discrete_options import check_discrete_options
from ember.inference.iteration.kept_plan import KeptPlan, ReadingOptions, data_of
from ember.inference.iteration.loop import Loop
from ember.inference.iteration.progress import progress_bar
from ember.inference.iteration.restarts.restarts import best_of
from ember.inference.iteration.restarts.starting_points import starting_points
from ember.inference.iteration.run import Run
from ember.inference.iteration.split_merge import check_mixture, split_and_merge
from ember.inference.iteration.stochastic.polish import by_draws, rule_of_draws
from ember.inference.iteration.subsample import sample_of
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.maximisation.m_step import MStep
from ember.inference.numerics.adaptive import Adaptive
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.numerics.quadrature import Quadrature
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.queries.on_nodes import finer_rules, node_gaps, warning_of_gaps
from ember.inference.queries.relabelling import in_canonical_order
from ember.inference.queries.units import finer_unit_rules, unit_gaps, warning_of_unit_gaps
from ember.inference.reports.explanation import Explanation, explain

__all__ = ["EM"]


class EM(Batches):
    r"""Fits a latent-variable model written in Pyro by expectation-maximisation.

    From a start, two steps alternate until nothing is left to gain:

    .. math::

        \text{E:}\quad Q(\theta) = \mathbb{E}_{z \mid x, \theta_t} \log p(x, z, \theta)
        \qquad
        \text{M:}\quad \theta_{t+1} = \arg\max_\theta Q(\theta).

    Discrete latent sites are summed out exactly. Continuous ones are integrated where they ask for
    it or are found to be latent: exactly if they are Gaussian (``Normal`` and
    ``MultivariateNormal`` sites that others read in weighted sums, ``infer={"integrate":
    "gaussian"}``) or have conjugate priors (``"conjugate"``); on nodes if they ask for that
    (``"quadrature"``). All other unobserved sites and ``pyro.param`` statements are parameters:
    with ``objective="map"`` their priors count, as densities in the space in which the model
    declares them (the same optimum as Pyro's ``AutoDelta``); with ``"mle"`` they are left out. The
    objective never falls.

    NaN in the data (or a masked entry of an array, or pandas' ``NA``) stands for an entry that is
    missing at random, and drops out of the likelihood: of a multivariate normal row the density is
    that of its observed entries, whatever the pattern.

    Args:
        model: A Pyro function (or ``PyroModule``) that takes the data.
        objective: "map" or "mle".
        integrate: Per-site wishes that override the model's ``infer={"integrate": ...}``:
            "gaussian", "conjugate", "quadrature" or a ``Quadrature`` or ``Adaptive`` rule,
            "monte-carlo" or a ``MonteCarlo`` for a continuous latent, None
            for a parameter.
        init: "kmeans", "points", "random", "hierarchical", "prior", for chains also "sticky"
            (levels of the data, states that last) and "windows" (see
            ``initialisation/starting_params.py``), a dict of parameters (constrained; may be
            partial), or a callable that receives the model's arguments and returns such a dict.
        restarts: How many starts to make: the first is ``init``, the others are of several kinds.
            All take a short run as one batch, and the best third (no fewer than three) are run to
            the end; the best result is kept, and ``fit.starts`` says what became of each.
        anneal: Inverse temperatures between 0 and 1, rising, for example
            ``(0.1, 0.2, 0.4, 0.7)``: that many EM steps with a flattened posterior precede the
            loop, so that it depends less on the start (Ueda & Nakano 1998, Neural Networks 11,
            271-282).
        assignment: "soft" averages over the latents; "hard" takes their most probable joint value
            instead (classification EM; k-means is a case of it), without acceleration. Then
            ``fit.history`` is the classification objective, ``max_z log p(x, z | params)`` plus
            the log prior, by which starts are compared too, and ``fit.log_likelihood`` is
            ``log p(x | params)`` at the end, as for any fit.
        mode: The coordinates in which the MAP estimate is the mode of the posterior density. With
            "constrained" those in which the model declares its sites, as for ``AutoDelta``. With
            "unconstrained" those of ``biject_to(support)``, in which NUTS and
            ``AutoLaplaceApproximation`` work: the density is multiplied by the Jacobian, which
            ``fit.log_posterior`` and ``fit.history`` contain. A Dirichlet or Beta prior with
            concentrations below 1 has a mode in these alone.
        escape: None, or "split-merge": after convergence, try for a better optimum by merging two
            components and splitting a third (plain mixtures; Ueda et al. 2000, Neural
            Computation 12, 2109-2128).
        accelerate: "auto" (SQUAREM, in long runs Newton's method for plain mixtures with few
            parameters, and taking turns with L-BFGS for others), None (plain EM, iterate for
            iterate), "squarem", "lbfgs" or "anderson".
        tol: Tolerance on what is still to gain, relative to the objective; 0 runs ``max_iter``
            iterations.
        max_iter: The largest number of iterations for each start.
        seed: Makes the run repeatable; the global random state is untouched either way.
        progress: Whether to show a progress bar.

    The states of a latent come out by the share of the data that they explain, largest first, if
    the model does not tell them apart; with a start of the user's own (a dict or a callable) they
    keep its order.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option has an unknown value.

    Reference:
        Dempster, Laird & Rubin (1977), *Maximum likelihood from incomplete data via the EM
        algorithm*, JRSS B 39, 1-38.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def coins(heads):
        ...     weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        ...     with pyro.plate("coins", 2):
        ...         p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     with pyro.plate("rows", len(heads)):
        ...         coin = pyro.sample("coin", dist.Categorical(weights))
        ...         pyro.sample("heads", dist.Binomial(10, p[coin]), obs=heads)
        >>> fit = EM(coins, seed=0).fit(torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0]))
        >>> fit.converged
        True
    """

    def __init__(
        self,
        model: Model,
        objective: str = "map",
        *,
        integrate: Mapping[str, Any] | None = None,
        init: Init = "kmeans",
        restarts: int = 1,
        anneal: Sequence[float] | None = None,
        assignment: str = "soft",
        mode: str = "constrained",
        escape: str | None = None,
        accelerate: str | None = "auto",
        tol: float = TOLERANCE,
        max_iter: int = 1000,
        seed: int | None = None,
        progress: bool = False,
    ) -> None:
        check_em_options(
            model=model, objective=objective, integrate=integrate, init=init, restarts=restarts,
            anneal=anneal, assignment=assignment, mode=mode, escape=escape, accelerate=accelerate,
            tol=tol, max_iter=max_iter, seed=seed,
        )  # fmt: skip
        self.model, self.objective = model, objective
        self.integrate, self.init, self.restarts = dict(integrate or {}), init, restarts
        self.anneal = tuple(anneal or ())
        self.mode = mode
        self.assignment, self.escape = assignment, escape
        self.accelerate, self.tol, self.max_iter = accelerate, tol, max_iter
        self.seed, self.progress = seed, progress
        self._kept = KeptPlan()

    @property
    def name(self) -> str:
        """How tables and pictures call this method."""
        mode = ", unconstrained" if self.mode == "unconstrained" else ""
        return f"EM ({self.objective.upper()}{mode})"

    # -- the four steps -----------------------------------------------------------------------

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """The model, read for these arguments: what stays fixed from step to step.

        ``initialise`` and ``e_step`` take it in place of the arguments. Then the model is not run
        again to see whether it, or its data, have changed, which pays where data are large.
        """
        args, kwargs, _ = take(self.model, args, kwargs)
        with sheltered(self.seed, (args, kwargs)):
            return self._options.read(args, kwargs)

    def initialise(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Starting parameters for the model's arguments: site name to constrained tensor."""
        args, kwargs, _ = take(self.model, args, kwargs)
        with sheltered(self.seed, data_of(args, kwargs)):
            return starting_params(self._kept.plan_for(self._options, args, kwargs), self.init)

    def e_step(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> Statistics:
        """Expected sufficient statistics and log likelihood of data at ``params``.

        Data of probability zero have the log likelihood minus infinity.

        Raises:
            ValueError: If ``params`` does not fit the model.
        """
        if not isinstance(params, Mapping):
            raise TypeError(
                f"e_step takes params first, as a dict, not {type(params).__name__}; then the "
                "model's own arguments."
            )
        args, kwargs, _ = take(self.model, args, kwargs)
        with sheltered(self.seed, data_of(args, kwargs)):
            plan = self._kept.plan_for(self._options, args, kwargs)
            statistics = LogEvidence.of(plan).statistics(
                check_params(plan, params), maximum=self._classification
            )
            statistics = dataclasses.replace(statistics, m_step=MStep.of(plan))
        if statistics.log_likelihood <= 0.1 * IMPOSSIBLE:  # minus infinity in all but name
            return dataclasses.replace(statistics, log_likelihood=-math.inf)
        return statistics

    def m_step(self, stats: Statistics) -> dict[str, Tensor]:
        """Parameters that maximise the expected log joint (with the prior, for MAP).

        Raises:
            Degenerate: If a component has collapsed or emptied.
        """
        if not isinstance(stats, Statistics) or stats.m_step is None:
            raise TypeError(f"m_step takes what e_step returns, not {type(stats).__name__}.")
        size = 1.0 + abs(stats.log_prior)
        if any(abs(other - stats.log_prior) > 1e-9 * size for other in stats.others):
            warnings.warn(
                "the pieces of data come with different priors (a default prior is scaled by the "
                "data); the first piece's is used: state the prior, or use objective='mle'.",
                RuntimeWarning,
                stacklevel=2,
            )
        rows = [piece.factors.structure.arguments for piece in stats.opaque]
        with sheltered(self.seed, stats.params, rows):
            return stats.m_step(stats)

    def converged(self, history: Sequence[Statistics]) -> bool:
        """Whether plain EM steps have settled, judged by the results of all E-steps so far."""
        if self._stopping_rule is None or not history:
            return False
        return self._stopping_rule(Trajectory.through(history)) is not None

    # -- the loop -----------------------------------------------------------------------------

    def fit(self, *args: Any, **kwargs: Any) -> Fit:
        """Runs EM on the model's own arguments, from every start, and keeps the best result.

        An interrupt (Ctrl-C) ends it with the best result so far, once there is one.

        Raises:
            ValueError: If the model or its data cannot be handled; the message names the site.
        """
        began = time.perf_counter()
        args, kwargs, recipe = take(self.model, args, kwargs)
        with sheltered(self.seed, (args, kwargs)):
            run, misread = self._fit(self._options.read(args, kwargs), began), set[str]()
            gaps: dict[str, float] = {}
            try:
                # Where a model branches out of the probes' sight, its maps are wrong: begin anew.
                while sites := run.plan.misread_sites(run.params):
                    if run.stop is StopReason.INTERRUPTED:
                        break
                    misread.update(sites)
                    run = self._fit(self._options.read(args, kwargs, misread), began)
                if misread:  # single steps need not find out again
                    self._kept.keep(run.plan, self._options)
                run, gaps = self._on_enough_nodes(run, args, kwargs, misread, began)
                run = self._in_order(run)
            except KeyboardInterrupt:
                run = dataclasses.replace(run, stop=StopReason.INTERRUPTED)
        fit = dataclasses.replace(Fit.of(run), node_gaps=gaps)
        fit = fit.with_names(args, kwargs, recipe)
        if fit.warning:
            warnings.warn(fit.warning, RuntimeWarning, stacklevel=2)
        return dataclasses.replace(fit, seconds=time.perf_counter() - began)

    def _fit(self, plan: Plan, began: float) -> Run:
        """The best run from all starts under one plan."""
        check_rows(plan)
        check_discrete_options(plan, self.assignment, self.anneal)
        if self.escape:
            check_mixture(plan)
        close = REACHED * (self.tol or TOLERANCE)
        run = functools.partial(self._run, plan)
        best = self._by_sample(plan, began)
        best = best or best_of(
            plan,
            starting_points(plan, self.init, self.restarts, self.anneal),
            run,
            self.max_iter,
            close,
            began,
            self._classification,
            accelerate=self.accelerate is not None and not self._classification,
            progress=self.progress,
        )
        if self.escape and best.converged:
            best = split_and_merge(plan, best, lambda start: run(Trajectory(start, began)), close)
        return dataclasses.replace(best, evaluations=best.evaluations + len(self.anneal))

    def _by_sample(self, plan: Plan, began: float) -> Run | None:
        """The run from where a sample of many rows has led to; None if it has led nowhere."""
        if not isinstance(self.init, str) or self._classification or not self.max_iter:
            return None
        sample = sample_of(plan)
        first = None if sample is None else self._on_sample(sample, began)
        if first is None or not (first.converged or first.stop is StopReason.MAX_ITER):
            return None
        run = self._run(plan, Trajectory(first.params, began))
        starts = first.starts if self.restarts > 1 else run.starts
        return dataclasses.replace(run, starts=starts)

    def _on_enough_nodes(
        self,
        run: Run,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        misread: Collection[str],
        began: float,
    ) -> tuple[Run, dict[str, float]]:
        """Goes on with more nodes where the integral of some row has not settled; and the gaps."""
        integrate = dict(self.integrate)
        while True:
            gaps = node_gaps(run.plan, run.params)
            of_units = unit_gaps(run.plan, run.params)
            finer: dict[str, Quadrature | Adaptive] = {
                **finer_rules(run.plan, gaps), **finer_unit_rules(run.plan, of_units)
            }  # fmt: skip
            if not finer or run.stop is StopReason.INTERRUPTED:
                break
            integrate.update(finer)
            plan = self._options._replace(integrate=integrate).read(args, kwargs, misread)
            again = self._run(plan, Trajectory(run.params, began))
            run = again.after(run)
        warning = warning_of_gaps(run.plan, gaps) or warning_of_unit_gaps(run.plan, of_units)
        return run.told_of_nodes(warning), {**gaps, **of_units}

    def _run(self, plan: Plan, way: Trajectory, limit: int | None = None) -> Run:
        """The run from one start."""
        limit = self.max_iter if limit is None else limit
        draws = rule_of_draws(plan)
        if draws is not None:
            return by_draws(plan, way, draws, self.name)
        em_map = EMMap.of(plan, self._classification, self.accelerate is not None)
        accelerate = None if self._classification else self.accelerate
        with progress_bar(self.progress, limit, self.name) as tick:
            loop = Loop(
                plan,
                em_map,
                self._stopping_rule,
                scheme_for(accelerate, plan, em_map),
                on_step=lambda way: tick(way.history[-1]),
                method=self.name,
            )
            return loop(way, limit)

    @property
    def _classification(self) -> bool:
        return self.assignment == "hard"

    @property
    def _stopping_rule(self) -> Monitor | None:
        """When to stop; with a tolerance of zero all iterations are made."""
        return Monitor(self.tol) if self.tol else None

    def _in_order(self, run: Run) -> Run:
        """States numbered by their share of the data, unless their numbers have a meaning."""
        # A warning may name a component by its number, which must then stay.
        named = run.warning and run.stop is not StopReason.MAX_ITER
        if not isinstance(self.init, str) or named:
            return run
        return dataclasses.replace(run, params=in_canonical_order(run.plan, run.params))

    # -- the plan -------------------------------------------------------------------------------

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """The plan for these arguments, as a table: role, plates and update of every site."""
        args, kwargs, _ = take(self.model, args, kwargs)
        with sheltered(self.seed, data_of(args, kwargs)):
            return explain(self._kept.plan_for(self._options, args, kwargs))

    @property
    def _options(self) -> ReadingOptions:
        return ReadingOptions(self.model, self.objective, self.mode, dict(self.integrate))
