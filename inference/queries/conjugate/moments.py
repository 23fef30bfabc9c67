"""The posterior of a latent with a conjugate prior at each value of the discrete latents."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.posterior import expectations
from ember.inference.factors.conjugate.component import ConjugateComponent
from ember.inference.factors.factor import Factor, align
from ember.inference.numerics.distribution import Distribution
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import natural_parameters, values_of
from ember.inference.queries.latent_draws import States

__all__ = ["EntryPosteriors"]


@dataclass(frozen=True)
class EntryPosteriors:
    """What is known of every entry of a latent.

    Attributes:
        component: The latent with the sites that read it.
        hyper: Hyperparameters of every entry at each of the ``S`` joint values of the discrete
            latents beside it, ``(S, n, M)``.
        weights: The posterior probability of each of these values for every entry, ``(S, n)``; NaN
            for impossible data.
    """

    component: ConjugateComponent
    hyper: Tensor
    weights: Tensor

    @staticmethod
    def of(
        plan: Plan, params: Mapping[str, Tensor], component: ConjugateComponent
    ) -> "EntryPosteriors":
        """Those at given parameters."""
        with torch.no_grad():
            natural = natural_parameters(plan, values_of(plan, params))
            hyper = component.posterior(natural, plan.opaque.factor_log_probs(params))
        states = len(hyper)
        dims = tuple(symbol for symbol, _ in (*component.states, *component.rows))
        plates = frozenset(symbol for symbol, _ in component.rows)
        probe = Factor(component.factor.name, dims, plates, component.factor.scale)
        weights = hyper.new_ones(states, 1)
        if states > 1:
            (weights,) = expectations(plan, params, [probe])
            weights = weights.reshape(states, -1)[:, component.row_of_entry]
        return EntryPosteriors(component, hyper, weights.expand(states, component.count))

    @property
    def distribution(self) -> Distribution:
        """The posterior of each entry at each joint value, batch shape ``(S, n)``."""
        return self.component.family.distribution(self.hyper)

    def draw(self, states: States, draws: int) -> Tensor:
        """Draws of all entries, given draws of the discrete latents, ``(draws, n, *event)``."""
        rows = tuple(symbol for symbol, _ in self.component.rows)
        sizes = [size for _, size in self.component.rows]
        joint = torch.zeros((draws, *sizes), dtype=torch.long)
        for symbol, size in self.component.states:
            dims, state = states[symbol]
            joint = joint * size + align(state, ("draws", *dims), ("draws", *rows))
        chosen = joint.reshape(draws, -1)[:, self.component.row_of_entry]
        hyper = self.hyper[chosen, torch.arange(self.component.count)]
        return self.component.family.distribution(hyper).sample()
