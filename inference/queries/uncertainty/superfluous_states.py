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


def superfluous_states(plan: Plan, params: Params, entries: Entries) -> tuple[Tensor, list[str]]:
    """Which entries belong to such states, ``(E,)``, and a sentence for each latent."""
    marked = {n: torch.zeros(s, dtype=torch.bool) for n, s in entries.shapes.items()}
    sentences = []
    merged = coinciding_states(plan, params, SAME)
    for latent in numberings(plan):
        empty = (explained(plan, params, latent) < NOTHING).nonzero()[:, 0].tolist()
        states = sorted({*empty, *merged.get(latent, ())})
        for name, axes in component_axes(plan, latent).items():
            for axis in axes:
                marked[name].index_fill_(axis, torch.tensor(states, dtype=torch.long), True)
        if states:
            named = ", ".join(map(str, states))
            sentences.append(
                f"states {named} of latent site '{latent}' are one and the same, or explain no "
                "row: the data do not identify what each of them stands for, so there is no "
                "standard error (NaN) for it; use fewer states."
            )
    return torch.cat([each.reshape(-1) for each in marked.values()]), sentences
