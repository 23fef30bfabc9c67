"""Joint draws of the discrete latents from their posterior at given parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.enumeration import Factor
from ember.inference.factors import IMPOSSIBLE
from ember.inference.plan import Plan

__all__ = ["Latents", "States"]

States = dict[str, tuple[tuple[str, ...], Tensor]]
"""For each latent symbol its plates, and draws of its state of shape ``(draws, *plates)``."""


@dataclass(frozen=True)
class Latents:
    """The latents of a plan at given parameters, to be drawn from their joint posterior."""

    plan: Plan
    params: Mapping[str, Tensor]
    probes: list[Factor]
    marginals: list[Tensor]

    @staticmethod
    def of(plan: Plan, params: Mapping[str, Tensor]) -> "Latents":
        probes = []
        for name, symbol in plan.latent_symbols.items():
            site = plan.sites[name]
            plates = tuple(s for s in site.layout.outer if s in site.plates)
            probes.append(Factor(name, (symbol, *plates), site.plates, plan.scales[name]))
        return Latents(plan, params, probes, plan.expectations(params, probes))

    def draw(self, draws: int) -> States:
        """Draws of every latent: of one after another, each given those before it."""
        states: States = {}
        for i, probe in enumerate(self.probes):
            if i == 0:
                found = _states(self.marginals[0], draws)
            else:
                found = torch.cat([self._given(states, i, draw) for draw in range(draws)])
            states[probe.dims[0]] = (probe.dims[1:], found)
        return states

    def _given(self, states: States, i: int, draw: int) -> Tensor:
        """One draw of a latent, given the states of a draw of those before it."""
        tensors = [torch.zeros([self.plan.sizes[s] for s in probe.dims]) for probe in self.probes]
        for number, probe in enumerate(self.probes[:i]):
            state = states[probe.dims[0]][1][draw]
            chosen = torch.nn.functional.one_hot(state, self.plan.sizes[probe.dims[0]])
            tensors[number] = torch.where(chosen.movedim(-1, 0) == 1, 0.0, IMPOSSIBLE)
        return _states(self.plan.expectations(self.params, self.probes, tensors)[i], 1)


def _states(posterior: Tensor, draws: int) -> Tensor:
    """Draws of a state for each place, ``(draws, *plates)``, given ``(K, *plates)``."""
    flat = posterior.reshape(len(posterior), -1).T
    drawn = torch.multinomial(flat, draws, replacement=True)
    return drawn.T.reshape(draws, *posterior.shape[1:])
