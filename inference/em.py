"""Expectation-maximisation for Pyro models: initialise, E-step, M-step, check convergence."""

import dataclasses
import functools
import itertools
import math
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.fit import Fit
from ember.inference.initialisation.given_params import check_params
from ember.inference.initialisation.starting_params import (
    Init,
    has_states,
    start_kinds,
    starting_params,
)
from ember.inference.inputs.arguments import Model, prepare
from ember.inference.inputs.options import (
    OBJECTIVES,
    check_choice,
    check_em_options,
)
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.annealing import annealed
from ember.inference.iteration.checks import check_local_parameters, check_rows, warn_of_cuts
from ember.inference.iteration.convergence import Monitor, Movement, StopReason
from ember.inference.iteration.loop import Loop, expectation
from ember.inference.iteration.restarts.restarts import GIVEN, Start, best_of
from ember.inference.iteration.run import Run
from ember.inference.iteration.split_merge import check_mixture, split_and_merge
from ember.inference.maximisation.degeneracy import Degenerate
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.updates import check_settable
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.queries.relabelling import in_canonical_order
from ember.inference.reading.fingerprint import fingerprint
from ember.inference.reading.model_errors import unevaluated
from ember.inference.reports.explanation import Explanation, explain

__all__ = ["EM"]


TOLERANCE = 1e-8  # where the user has none
REACHED = 10.0  # an optimum is reached, or exceeded, by this multiple of the tolerance


class EM:
    r"""Fits a latent-variable model written in Pyro by expectation-maximisation.

    From a start, two steps alternate until nothing is left to gain:

    .. math::

        \text{E:}\quad Q(\theta) = \mathbb{E}_{z \mid x, \theta_t} \log p(x, z, \theta)
        \qquad
        \text{M:}\quad \theta_{t+1} = \arg\max_\theta Q(\theta).

    Discrete latent sites are summed out exactly. Continuous unobserved sites and ``pyro.param``
    statements are parameters: with ``objective="map"`` their priors count, as densities in the
    space in which the model declares them (the same optimum as Pyro's ``AutoDelta``); with
    ``"mle"`` they are left out. The objective never falls.

    NaN in the data (or a masked entry of an array, or pandas' ``NA``) stands for an entry that is
    missing at random, and drops out of the likelihood: of a multivariate normal row the density is
    that of its observed entries, whatever the pattern.

    Args:
        model: A Pyro function (or ``PyroModule``) that takes the data.
        objective: "map" or "mle".
        integrate: Per-site wishes that override the model's ``infer={"integrate": ...}``.
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
        accelerate: "auto" (SQUAREM, taking turns with L-BFGS in long runs), None (plain EM, iterate
            for iterate), "squarem", "lbfgs" or "anderson".
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
        self._latest: tuple[Any, Plan] | None = None

    @property
    def name(self) -> str:
        """How tables and pictures call this method."""
        mode = ", unconstrained" if self.mode == "unconstrained" else ""
        return f"EM ({self.objective.upper()}{mode})"

    @property
    def _hard(self) -> bool:
        return self.assignment == "hard"

    # -- the four steps -----------------------------------------------------------------------

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """The model, read for these arguments: what stays fixed from step to step.

        ``initialise`` and ``e_step`` take it in place of the arguments. Then the model is not run
        again to see whether it, or its data, have changed, which pays where data are large.
        """
        with sheltered(self.seed, (args, kwargs)):
            return self._read(args, kwargs)

    def initialise(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Starting parameters for the model's arguments: site name to constrained tensor."""
        with sheltered(self.seed, _data(args, kwargs)):
            return starting_params(self._kept(args, kwargs), self.init)

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
        with sheltered(self.seed, _data(args, kwargs)):
            plan = self._kept(args, kwargs)
            found = expectation(plan, self._hard)(check_params(plan, params))
            found = dataclasses.replace(found, m_step=MStep.of(plan))
        if found.log_likelihood <= 0.1 * IMPOSSIBLE:  # minus infinity in all but name
            return dataclasses.replace(found, log_likelihood=-math.inf)
        return found

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
        with sheltered(self.seed, rows):
            return stats.m_step(stats)

    def converged(self, history: Sequence[Statistics]) -> bool:
        """Whether plain EM steps have settled, judged by the results of all E-steps so far."""
        monitor, reason, previous = Monitor(self.tol), None, 0.0
        for before, after in itertools.pairwise(history):
            length = Coordinates.distance(before.params, after.params)
            movement = Movement(previous, length, after.objective - before.objective)
            reason, previous = monitor.check(after.objective, movement), length
        return reason is not None

    # -- the loop -----------------------------------------------------------------------------

    def fit(self, *args: Any, **kwargs: Any) -> Fit:
        """Runs EM on the model's own arguments, from every start, and keeps the best result.

        An interrupt (Ctrl-C) ends it with the best result so far, once there is one.

        Raises:
            ValueError: If the model or its data cannot be handled; the message names the site.
        """
        began = time.perf_counter()
        with sheltered(self.seed, (args, kwargs)):
            best, misread = self._fit(self._read(args, kwargs), began), set[str]()
            try:
                # Where a model branches out of the probes' sight, its maps are wrong: begin anew.
                while found := best.plan.misread_sites(best.params):
                    if best.stop is StopReason.INTERRUPTED:
                        break
                    misread.update(found)
                    best = self._fit(self._read(args, kwargs, misread), began)
                if misread:  # single steps need not find out again
                    self._keep(best.plan)
                self._put_in_order(best)
            except KeyboardInterrupt:
                best.stop = StopReason.INTERRUPTED
        fit = Fit.of(best).with_names(args, kwargs)
        fit.seconds = time.perf_counter() - began
        if fit.warning:
            warnings.warn(fit.warning, RuntimeWarning, stacklevel=2)
        return fit

    def _fit(self, plan: Plan, began: float) -> Run:
        """The best fit from all starts under one plan."""
        check_rows(plan)
        if self.escape:
            check_mixture(plan)
        run = functools.partial(self._run, plan, began)
        close, hard = REACHED * (self.tol or TOLERANCE), self._hard
        best = best_of(
            plan, self._starts(plan), run, self.max_iter, close, began,
            maximum=hard, jumps=self.accelerate is not None and not hard,
        )  # fmt: skip
        if self.escape and best.converged:
            best = split_and_merge(plan, best, run, close)
        best.evaluations += len(self.anneal)
        return best

    def _put_in_order(self, best: Run) -> None:
        """Numbers the states by their share of the data, unless their numbers have a meaning."""
        # A warning may name a component by its number, which must then stay.
        named = best.warning and best.stop is not StopReason.MAX_ITER
        if isinstance(self.init, str) and not named:
            best.params = in_canonical_order(best.plan, best.params)

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """The plan for these arguments, as a table: role, plates and update of every site."""
        with sheltered(self.seed, _data(args, kwargs)):
            return explain(self._kept(args, kwargs))

    def _read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], misread: Collection[str] = ()
    ) -> Plan:
        """The plan for these arguments, read from the model as it is now."""
        check_choice("objective", self.objective, OBJECTIVES)
        arguments = prepare(args, kwargs)
        plan = build_plan(
            self.model, arguments, self.objective, self.integrate, misread=misread,
            unconstrained=self.mode == "unconstrained",
        )  # fmt: skip
        LogEvidence.of(plan)  # says now if its latents cannot be summed out
        check_local_parameters(plan, self.integrate)
        check_settable(plan)
        warn_of_cuts(plan, 4)
        return plan

    def _kept(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Plan:
        """A given plan, or the latest one as long as the model says what it said then."""
        if len(args) == 1 and isinstance(args[0], Plan) and not kwargs:
            return self._checked(args[0])
        if self._latest is not None:
            (before, mark), plan = self._latest
            model, *options = self._options
            same = before[0] is model and [*before[1:]] == options
            now = dataclasses.replace(plan.structure, arguments=prepare(args, kwargs))
            if same and mark is not None and fingerprint(now) == mark:
                return plan
        plan = self._read(args, kwargs)
        self._keep(plan)
        return plan

    def _keep(self, plan: Plan) -> None:
        self._latest = (self._options, fingerprint(plan.structure)), plan

    @property
    def _options(self) -> tuple[Any, ...]:
        """What a plan depends on, the model's own arguments aside."""
        return self.model, self.objective, dict(self.integrate)

    def _checked(self, plan: Plan) -> Plan:
        if plan.structure.model is self.model and plan.objective == self.objective:
            return plan
        raise ValueError(
            "the plan was read for another model or objective than this EM has; make it anew with "
            "em.plan(...)."
        )

    def _starts(self, plan: Plan) -> list[Start]:
        """The chosen start, then others; those that degenerate or fail at once drop."""
        starts: list[Start] = []
        failures: list[str] = []
        for wish in start_kinds(self.init, self.restarts, bool(plan.chains)):
            kind = wish if isinstance(wish, str) else GIVEN
            try:
                # Starts of one kind should differ, and all kinds are one where states do not.
                varied = any(start.kind == kind or not has_states(plan) for start in starts)
                params = starting_params(plan, wish, varied)
                starts.append(Start(kind, annealed(plan, params, self.anneal)))
            except Degenerate as error:
                failures.append(str(error))
            except (RuntimeError, ArithmeticError) as error:
                if callable(wish):  # it may be at fault itself
                    raise
                failures.append(unevaluated(self.model, error))
        if not starts:
            raise ValueError(f"no start is possible: {failures[0]}")
        return starts

    def _run(
        self, plan: Plan, began: float, params: dict[str, Tensor], limit: int | None = None
    ) -> Run:
        """The run from one start."""
        loop = Loop(plan, self.name, self._hard, self.accelerate, self.tol, self.progress, began)
        return loop(params, self.max_iter if limit is None else limit)


def _data(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What the arguments hold, or what those hold that a plan was read for."""
    if args and isinstance(args[0], Plan):
        return tuple(args[0].structure.arguments)
    return args, kwargs
