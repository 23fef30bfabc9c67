"""Joint draws of the discrete latents from their posterior at given parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation import posterior
from ember.inference.factors.factor import Factor
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.plan.plan import Plan
from ember.inference.queries.forecasting import posterior_pairs

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
        probes = [posterior.probe(plan, name) for name in plan.latent_symbols]
        return Latents(plan, params, probes, posterior.expectations(plan, params, probes))

    def draw(self, draws: int) -> States:
        """Draws of every latent: of one after another, each given those before it."""
        states: States = {}
        for i, probe in enumerate(self.probes):
            if i:
                drawn = torch.cat([self._given(states, i, draw) for draw in range(draws)])
            elif probe.name in self.plan.chains:
                drawn = self._paths(probe, self.marginals[0], draws)
            else:
                drawn = _states(self.marginals[0], draws)
            states[probe.dims[0]] = (probe.dims[1:], drawn)
        return states

    def _paths(self, probe: Factor, marginals: Tensor, draws: int) -> Tensor:
        """Whole paths of a chain: its first state, then each state given the one before."""
        pairs = posterior_pairs(self.plan, self.params, probe.name)
        time = probe.dims.index(self.plan.chains[probe.name].time)
        path = [_states(marginals.select(time, 0), draws)]
        for t in range(pairs.shape[-3]):
            joint = pairs[..., t, :, :].expand(draws, *pairs.shape[:-3], *pairs.shape[-2:])
            index = path[-1][..., None, None].expand(*joint.shape[:-2], 1, joint.shape[-1])
            weights = joint.gather(-2, index).squeeze(-2)
            # Beyond the end of a chain nothing is known.
            weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, 1.0)
            flat = weights.reshape(-1, weights.shape[-1])
            path.append(torch.multinomial(flat, 1).reshape(weights.shape[:-1]))
        return torch.stack(path, time)  # the dim of draws stands where that of states stood

    def _given(self, states: States, i: int, draw: int) -> Tensor:
        """One draw of a latent, given the states of a draw of those before it."""
        tensors = [torch.zeros([self.plan.sizes[s] for s in probe.dims]) for probe in self.probes]
        for number, probe in enumerate(self.probes[:i]):
            tensors[number] = _clamp(states[probe.dims[0]][1][draw], self.plan.sizes[probe.dims[0]])
        probe = self.probes[i]
        if probe.name not in self.plan.chains:
            return _states(
                posterior.expectations(self.plan, self.params, self.probes, tensors)[i], 1
            )
        time = probe.dims.index(self.plan.chains[probe.name].time)
        path = []
        for t in range(self.plan.sizes[probe.dims[time]]):
            given = posterior.expectations(self.plan, self.params, self.probes, tensors)[i]
            path.append(_states(given.select(time, t), 1))
            tensors[i].select(time, t).copy_(_clamp(path[-1][0], len(given)))
        return torch.stack(path, time)


def _clamp(state: Tensor, states: int) -> Tensor:
    """Log probabilities ``(K, *plates)`` that leave only the given state."""
    chosen = torch.nn.functional.one_hot(state, states).movedim(-1, 0)
    return torch.where(chosen == 1, 0.0, IMPOSSIBLE)


def _states(posterior: Tensor, draws: int) -> Tensor:
    """Draws of a state for each place, ``(draws, *plates)``, given ``(K, *plates)``.

    Where the data are impossible, the posterior is NaN and any state will do.
    """
    flat = posterior.nan_to_num(nan=1.0).reshape(len(posterior), -1).T
    drawn = torch.multinomial(flat, draws, replacement=True)
    return drawn.T.reshape(draws, *posterior.shape[1:])
