"""States of latents that stand for nothing: two that have become one, and those without data.

The shares of two states that coincide may be anything as long as their sum is what it is. What the
curvature says of their other parameters depends on the shares that they happen to have, so it says
nothing; and nothing it says of a state that explains no row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.plan.plan import Params, Plan
from ember.inference.queries.coincidence import coinciding_pairs
from ember.inference.queries.component_axes import component_axes, numberings
from ember.inference.queries.relabelling import explained
from ember.inference.queries.uncertainty.entries import Entries
from ember.inference.queries.uncertainty.passes import Passes

__all__ = ["superfluous_states"]


SAME = 1e-3  # difference of log probabilities of states that coincide
NOTHING = 1e-3  # of a row, explained by a state that is not needed

MERGED = (
    "{0} of latent site '{1}' are one and the same, so the data do not identify what each of them "
    "stands for: no standard error (NaN) for it; use fewer states."
)
EMPTY = (
    "{0} of latent site '{1}' explains no row, so the data do not identify what it stands for: no "
    "standard error (NaN) for it; use fewer states."
)


@dataclass(frozen=True)
class _Use:
    """What some rows need the states for.

    Attributes:
        explained: By latent site, how many rows each state explains, ``(K,)``.
        pairs: Every two states that coincide, with their latent site.
    """

    explained: dict[str, Tensor]
    pairs: frozenset[tuple[str, int, int]]

    def __add__(self, other: _Use) -> _Use:
        together = {n: count + other.explained[n] for n, count in self.explained.items()}
        return _Use(together, self.pairs & other.pairs)


@dataclass(frozen=True)
class _Asked:
    """The question for it, at some parameters."""

    params: Params

    def __call__(self, plan: Plan) -> _Use:
        counts = {name: explained(plan, self.params, name) for name in numberings(plan)}
        return _Use(counts, frozenset(coinciding_pairs(plan, self.params, SAME)))


def superfluous_states(data: Passes, params: Params, entries: Entries) -> tuple[Tensor, list[str]]:
    """Which entries belong to such states, ``(E,)``, and a sentence for each kind of them."""
    marked = {n: torch.zeros(s, dtype=torch.bool) for n, s in entries.shapes.items()}
    plan, sentences = data.plan, list[str]()
    use = data.total(_Asked(params), _Use.__add__)
    for latent in numberings(plan):
        empty = (use.explained[latent] < NOTHING).nonzero()[:, 0].tolist()
        alike = {state for label, *pair in use.pairs if label == latent for state in pair}
        merged = sorted(alike.difference(empty))
        for states, sentence in ((empty, EMPTY), (merged, MERGED)):
            if not states:
                continue
            sentences.append(sentence.format(_listed(states), latent))
            for name, axes in component_axes(plan, latent).items():
                for axis in axes:
                    marked[name].index_fill_(axis, torch.tensor(states), True)
    return torch.cat([each.reshape(-1) for each in marked.values()]), sentences


def _listed(states: list[int]) -> str:
    """Their numbers in words."""
    *most, last = map(str, states)
    return f"states {', '.join(most)} and {last}" if most else f"state {last}"
