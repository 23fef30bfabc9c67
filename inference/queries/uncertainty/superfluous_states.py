"""States of latents that stand for nothing: two that have become one, and those without data.

The shares of two states that coincide may be anything as long as their sum is what it is. What the
curvature says of their other parameters depends on the shares that they happen to have, so it says
nothing; and nothing it says of a state that explains no row.
"""

import torch
from torch import Tensor

from ember.inference.plan.plan import Params, Plan
from ember.inference.queries.coincidence import coinciding_states
from ember.inference.queries.component_axes import component_axes, numberings
from ember.inference.queries.relabelling import explained
from ember.inference.queries.uncertainty.entries import Entries

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


def superfluous_states(plan: Plan, params: Params, entries: Entries) -> tuple[Tensor, list[str]]:
    """Which entries belong to such states, ``(E,)``, and a sentence for each kind of them."""
    marked = {n: torch.zeros(s, dtype=torch.bool) for n, s in entries.shapes.items()}
    sentences = []
    coinciding = coinciding_states(plan, params, SAME)
    for latent in numberings(plan):
        empty = (explained(plan, params, latent) < NOTHING).nonzero()[:, 0].tolist()
        merged = sorted(coinciding.get(latent, set()).difference(empty))
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
