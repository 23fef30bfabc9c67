r"""The E-step: log evidence, and its gradient with respect to everything it depends on.

With natural parameters :math:`\eta` of the tied factors, the expected sufficient statistics are

.. math:: \mathbb E[T \mid x, \theta] = \nabla_\eta \log p(x \mid \theta),

so one evaluation of the log evidence and its gradient is the whole E-step. How the latents are
summed out is decided once for a plan: plain mixtures take one sweep over the rows
(``kernels/mixture.py``), as does a single latent on nodes (``kernels/nodes.py``), all other models
an elimination order (``elimination.py``).

With ``maximum`` the latents take their jointly most probable value instead (for a chain: the
Viterbi path): classification EM. With :math:`\hat z = \arg\max_z \log p(x, z \mid \theta_t)` the
M-step maximises :math:`\log p(x, \hat z \mid \theta)` (plus the log prior), and both halves raise

.. math:: C(\theta) = \max_z \log p(x, z \mid \theta),

whose gradient is the statistics at :math:`\hat z`: the same elimination, the maximum in place of
the sum. Components of equal weight and equal spherical variance give k-means.

Reference: Celeux & Govaert (1992), *A classification EM algorithm for clustering and two stochastic
versions*, Computational Statistics & Data Analysis 14, 315-332.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.expectation.elimination import Contraction
from ember.inference.expectation.kernels.mixture import MixtureKernel, mixture_kernel
from ember.inference.expectation.kernels.nodes import NodeKernel, node_kernel
from ember.inference.factors.gaussian.expansion import Expansion
from ember.inference.factors.opaque import OpaquePosterior
from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.potentials import all_tensors, natural_parameters, tensors, values_of
from ember.inference.plan.statistics import Statistics

__all__ = ["LogEvidence", "Pooled", "learnt"]

Pooled = dict[TieKey, tuple[TiedFactors, Tensor]]
STARTS = "0"  # the dim of starts: before all letters, so that it comes first among the plates


class LogEvidence:
    """The log evidence of one plan, compiled: ``log p(data | params)``.

    Args:
        plan: The plan.
        starts: For how many parameter values at once: the outermost plate of every factor. Then
            ``gradients`` alone is of use. None for one value, without such a plate.

    Raises:
        ValueError: If the latents cannot be summed out; see ``Contraction``.
    """

    def __init__(self, plan: Plan, starts: int | None = None) -> None:
        # A copy, which keeps nothing made from it: a plan that keeps this object would otherwise
        # keep itself, and all rows of its data, until the garbage collector comes by.
        self.plan, self.along = dataclasses.replace(plan), None if starts is None else STARTS
        factors, sizes, latents = plan.factors, plan.sizes, plan.latents()
        self.kernel: MixtureKernel | None = None
        self.on_nodes: NodeKernel | None = None
        if starts is None and not plan.on_nodes:
            self.kernel = mixture_kernel(factors, plan.compiled, list(latents), plan.row)
        elif starts is None and len(latents) == 1:
            ((symbol, (name, _)),) = latents.items()
            self.on_nodes = node_kernel(factors, plan.compiled, name, symbol, plan.row)
        elif starts is not None:
            factors = tuple(
                dataclasses.replace(f, dims=(STARTS, *f.dims), plates=f.plates | {STARTS})
                for f in factors
            )
            sizes = {**sizes, STARTS: starts}
        chains = list(plan.chains.values())
        self.contraction = Contraction(factors, latents, sizes, chains)
        whole = {component.factor.name for component in plan.components if component.is_pooled}
        along = () if starts is None else (STARTS,)
        pooled = [
            dataclasses.replace(f, dims=along, plates=frozenset(along)) if f.name in whole else f
            for f in factors
        ]
        # The sum over all rows, where no row is asked for.
        self.pooled = Contraction(pooled, latents, sizes, chains) if whole else self.contraction

    @staticmethod
    def of(plan: Plan) -> "LogEvidence":
        """The log evidence of a plan, compiled at the first call."""
        return plan.once(LogEvidence)

    def __call__(self, params: Params) -> Tensor:
        """``log p(data | params)``, differentiable with respect to the parameters."""
        if not torch.is_grad_enabled() and self.kernel is not None:
            natural = self._natural(self.plan, params)
            if natural is not None:
                return torch.tensor(self.kernel(natural)[0], dtype=torch.float64)
        return self.contraction.total(self.contraction(all_tensors(self.plan, params)))

    def explained(self, params: Params) -> Tensor | None:
        """How many rows each component explains, ``(K,)``; None if there is no quick way."""
        natural = self._natural(self.plan, params) if self.kernel is not None else None
        if self.kernel is None or natural is None:
            return None
        with torch.no_grad():
            return self.kernel.counts(natural)

    @staticmethod
    def _natural(plan: Plan, params: Params) -> dict[TieKey, Tensor] | None:
        """The natural parameters, unless digits would be lost by them."""
        with torch.no_grad():
            values = values_of(plan, params)
            near = plan.residuals.needed(plan.tied, values)
            return None if near else natural_parameters(plan, values)

    def rows(self, params: Params) -> Tensor:
        """``log p(row | params)`` for every row, unweighted; a scalar if there are no rows.

        What lies outside the plate of rows, such as a ``pyro.factor`` on parameters, is no row's.
        """
        return self.rows_of(all_tensors(self.plan, params))

    def rows_of(self, tensors: Sequence[Tensor]) -> Tensor:
        """The same for given log probabilities of all factors."""
        plan, parts = self.plan, self.contraction(tensors)
        rows = self.contraction.total(parts, weighted=False, along=plan.row)
        rows = torch.where(rows <= 0.1 * IMPOSSIBLE, -torch.inf, rows)
        return rows.expand(plan.sizes[plan.row]) if plan.row else rows

    def statistics(
        self,
        params: Params,
        temper: float = 1.0,
        maximum: bool = False,
        expanded: bool = False,
    ) -> Statistics:
        r"""Log evidence at ``params``, and its gradient: the expected sufficient statistics.

        Args:
            params: The parameters.
            temper: With :math:`\beta < 1` the latents' posterior is flattened to one proportional
                to :math:`p(z, x \mid \theta)^\beta`; the log likelihood is that of the tempered
                model.
            maximum: Whether the latents take their most probable joint value; the log likelihood
                is then that of the classification.
            expanded: Whether to tell apart what grows as Gaussian latents are stretched.
        """
        plan = placed(self.plan, params)
        with torch.no_grad():
            values = values_of(plan, params)
            natural = natural_parameters(plan, values)
            near = plan.residuals.needed(plan.tied, values)
            kernel = self._kernel_at(plan)
            if kernel is not None and not near and temper == 1.0 and not maximum:
                total, gradient = kernel(natural)
                sums = {key: (tied, gradient[key]) for key, tied in plan.tied.items()}
                if not plan.residuals.lost(sums):
                    return learnt(plan, params, total, sums, {})
        return self._by_elimination(plan, params, natural, near, temper, maximum, expanded)

    def _kernel_at(self, plan: Plan) -> MixtureKernel | NodeKernel | None:
        """The kernel with the nodes of a plan, if there is one."""
        return self.kernel if self.on_nodes is None else self.on_nodes.at(plan.compiled)

    def by_natural_parameters(
        self, plan: Plan, params: Params
    ) -> tuple[Tensor, dict[TieKey, Tensor], dict[str, Tensor]] | None:
        """Log evidence, statistics and posterior weights of opaque sites; None if digits are lost.

        Args:
            plan: The plan with its nodes in their places.
            params: The parameters.
        """
        natural, kernel = self._natural(plan, params), self._kernel_at(plan)
        if natural is None:
            return None
        weights: dict[str, Tensor] = {}
        if isinstance(kernel, (MixtureKernel, NodeKernel)):
            total, gradient = kernel.swept(natural)
        elif kernel is not None:
            return None  # one of the user's own gives a number, not a tensor
        else:
            with torch.no_grad():
                other = plan.opaque.factor_log_probs(params)
            total, gradient, weights = self.gradients(natural, other, plan=plan)
        sums = {key: (tied, gradient[key]) for key, tied in plan.tied.items()}
        return None if plan.residuals.lost(sums) else (total, gradient, weights)

    def node_gap(self, params: Params, is_even: Tensor) -> float:
        """How far log evidence by even and by odd nodes differs in a row, at most."""
        assert self.on_nodes is not None
        plan = placed(self.plan, params)
        natural = natural_parameters(plan, values_of(plan, params))
        return self.on_nodes.at(plan.compiled).gap(natural, is_even)

    def _by_elimination(
        self,
        plan: Plan,
        params: Params,
        natural: Mapping[TieKey, Tensor],
        near: frozenset[TieKey],
        temper: float,
        maximum: bool,
        expanded: bool,
    ) -> Statistics:
        """For any model: contract and take the gradient; by residuals where digits are at stake."""
        with torch.no_grad():
            other = plan.opaque.factor_log_probs(params)
        while True:
            with torch.no_grad():
                exact = plan.residuals.log_probs(near, plan.tied, params)
            smooth = {key: eta for key, eta in natural.items() if key not in near}
            pieces = self._pieces(smooth) if expanded else {}
            total, by_tie, by_factor = self.gradients(
                smooth, {**other, **exact}, temper, maximum, pieces, plan
            )
            sums = {
                key: plan.residuals.sums(tied, params, by_factor)
                if key in near
                else (tied, by_tie[key])
                for key, tied in plan.tied.items()
            }
            lost = plan.residuals.lost(sums) - near
            if not lost:
                weights = {name: by_factor[name] for name in other}
                found = learnt(plan, params, float(total), sums, weights)
                return dataclasses.replace(found, expansions=self._expansions(pieces))
            near = near | lost

    def gradients(
        self,
        natural: Mapping[TieKey, Tensor],
        other: Mapping[str, Tensor],
        temper: float = 1.0,
        maximum: bool = False,
        pieces: Mapping[str, Mapping[TieKey, Tensor]] | None = None,
        plan: Plan | None = None,
    ) -> tuple[Tensor, dict[TieKey, Tensor], dict[str, Tensor]]:
        """The log evidence, and its gradients by natural parameters and by log probabilities.

        With several starts everything has a leading dim for them, the log evidence too. Gradients
        by the ``pieces`` of expansions are left in them. ``plan`` is the plan with its nodes in
        their places, if it has any.
        """
        etas = {key: value.detach().requires_grad_() for key, value in natural.items()}
        log_probs = {name: value.detach().requires_grad_() for name, value in other.items()}
        with torch.enable_grad():
            each = tensors(plan or self.plan, etas, log_probs, True, pieces)
            if temper != 1.0:
                each = [temper * tensor for tensor in each]
            parts = self.pooled(each, maximum)
            total = self.pooled.total(parts, along=self.along) / temper
            split = [eta for own in (pieces or {}).values() for eta in own.values()]
            leaves = [*etas.values(), *log_probs.values(), *split]
            found = torch.autograd.grad(total.sum(), leaves, allow_unused=True)
        gradients = [
            torch.zeros_like(leaf) if g is None else g
            for leaf, g in zip(leaves, found, strict=True)
        ]
        by_tie = dict(zip(etas, gradients[: len(etas)], strict=True))
        last = len(etas) + len(log_probs)
        by_factor = dict(zip(log_probs, gradients[len(etas) : last], strict=True))
        for eta, gradient in zip(split, gradients[last:], strict=True):
            eta.grad = gradient
        for own in (pieces or {}).values():
            for key, eta in own.items():
                assert eta.grad is not None
                by_tie[key] = by_tie[key] + eta.grad.sum(0)
        return total.detach(), by_tie, by_factor

    def _pieces(self, natural: Mapping[TieKey, Tensor]) -> dict[str, dict[TieKey, Tensor]]:
        """Natural parameters once more for each piece of the expansion of each component."""
        found = {}
        for component in self.plan.components:
            stretches = component.stretches
            if stretches is not None:
                keys = {self.plan.ties[name] for name in component.sites}
                found[component.factor.name] = {
                    key: natural[key].detach().expand(stretches.pieces, -1, -1).requires_grad_()
                    for key in keys
                }
        return found

    def _expansions(self, pieces: Mapping[str, Mapping[TieKey, Tensor]]) -> tuple[Expansion, ...]:
        """The gradients by pieces, as parts of the statistics."""
        out = []
        for component in self.plan.components:
            own, stretches = pieces.get(component.factor.name), component.stretches
            if own is not None and stretches is not None:
                sums = {key: eta.grad for key, eta in own.items() if eta.grad is not None}
                out.append(Expansion(stretches, sums))
        return tuple(out)


def learnt(
    plan: Plan,
    params: Params,
    log_likelihood: float,
    sums: Pooled,
    weights: Mapping[str, Tensor],
) -> Statistics:
    """Statistics with all that follows from the plan and the parameters.

    Args:
        plan: The plan.
        params: Where they were taken.
        log_likelihood: That of the data.
        sums: The sufficient statistics of the tied factors.
        weights: The posterior weights of what only the model knows.
    """
    fixed = {name: value.detach() for name, value in params.items()}
    with torch.no_grad():
        log_prior = float(plan.prior.log_prob(fixed))
    opaque = (OpaquePosterior(plan.opaque, weights),) if weights else ()
    return Statistics(log_likelihood, log_prior, fixed, sums, opaque, plan.prior)
