"""All that variational Bayes needs of a model, made once from its plan."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.initialisation.starting_params import starting_params
from ember.inference.plan.plan import Plan
from ember.inference.queries.relabelling import canonical_orders, permute
from ember.inference.variational_bayes.choice import choose
from ember.inference.variational_bayes.given_scale import GivenScale
from ember.inference.variational_bayes.posterior_plan import posterior_plan, with_posteriors
from ember.inference.variational_bayes.posterior_step import PosteriorStep

__all__ = ["VariationalBayes"]

Params = Mapping[str, Tensor]


class VariationalBayes:
    """The plan of the posteriors, and its M-step.

    Args:
        points: The plan of the model at points.

    Attributes:
        plan: The plan of the posteriors.
        posteriors: Those, by parameter.
        points: Of all other parameters the reason why they have none.
        m_step: Statistics to posteriors.
    """

    def __init__(self, points: Plan) -> None:
        self._at_points = dataclasses.replace(points)  # a copy, which does not keep this object
        choice = choose(self._at_points)
        self.posteriors, self.points = choice.posteriors, choice.points
        self.plan = posterior_plan(self._at_points, choice.posteriors)
        self.m_step = PosteriorStep(self._at_points, self.plan, choice)

    @property
    def evidence(self) -> LogEvidence:
        """The bound of the latents' part, whose gradient is the E-step."""
        return LogEvidence.of(self.plan)

    def check(self, state: Params) -> None:
        """Refuses a state that lacks the mean or the size of a posterior, or a point.

        Raises:
            ValueError: Naming what it lacks.
        """
        lacking = [name for name in self.plan.structure.parameters if name not in state]
        if lacking:
            raise ValueError(f"the state lacks '{lacking[0]}'; begin with initialise(...).")

    @staticmethod
    def of(points: Plan) -> VariationalBayes:
        """That of a plan, made at the first call."""
        return points.once(VariationalBayes)

    def for_data(self, points: Plan) -> Plan:
        """Another plan of the same model, for other data, at these posteriors."""
        return with_posteriors(points, self.posteriors)

    def start(self, params: Params) -> dict[str, Tensor]:
        """The posteriors that follow from one E-step at points."""
        found: dict[str, Tensor] = self.m_step(LogEvidence.of(self._at_points).statistics(params))
        return found

    def start_of(self, kind: str) -> dict[str, Tensor]:
        """The same from a start of EM's; see ``initialisation/starting_params.py``."""
        return self.start(starting_params(self._at_points, kind, varied=True))

    def means(self, state: Params) -> dict[str, Tensor]:
        """The posterior means, and the points, under the names of the model's parameters."""
        return {name: state[name] for name in self._at_points.structure.parameters}

    def in_canonical_order(self, state: Params) -> dict[str, Tensor]:
        """Posteriors with the states of latents numbered by their share of the data."""
        ordered = dict(state)
        for latent, order in canonical_orders(self._at_points, self.means(state)).items():
            ordered = self.permuted(ordered, latent, order)
        return ordered

    def permuted(self, state: Params, latent: str, order: list[int]) -> dict[str, Tensor]:
        """Posteriors with the states of a latent renumbered: new state ``i`` is ``order[i]``."""
        moved = {**state, **permute(self._at_points, self.means(state), latent, order)}
        for posterior in self.posteriors.values():
            moved[posterior.key] = self._moved(latent, posterior.name, state, order)
        return moved

    def _moved(self, latent: str, name: str, state: Params, order: list[int]) -> Tensor:
        """The entry beside the mean of one posterior, its rows renumbered as those of the mean."""
        posterior, size = self.posteriors[name], state[self.posteriors[name].key]
        batch, shape = posterior.batch, self._at_points.structure.parameters[name].shape
        if size.shape == shape:
            return permute(self._at_points, {**state, name: size}, latent, order)[name]
        number = torch.arange(batch.numel()).reshape(*batch, *(1,) * (len(shape) - len(batch)))
        moved = permute(self._at_points, {**state, name: number.expand(shape)}, latent, order)
        rows = moved[name].reshape(batch.numel(), -1)[:, 0]
        return size.reshape(batch.numel(), -1)[rows].reshape(size.shape)

    def draw(self, state: Params, n: int) -> dict[str, Tensor]:
        """Draws ``(n, *shape)`` of every parameter from the posterior; points are repeated."""
        draws = {name: value.expand(n, *value.shape) for name, value in self.means(state).items()}
        given = [p for p in self.posteriors.values() if isinstance(p, GivenScale)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a Wishart draw called singular
            for posterior in self.posteriors.values():
                if not isinstance(posterior, GivenScale):
                    draws[posterior.name] = posterior.of_site(state).sample(torch.Size([n]))
        for posterior in given:
            draws[posterior.name] = posterior.draw(state, draws[posterior.scale.name])
        return draws
