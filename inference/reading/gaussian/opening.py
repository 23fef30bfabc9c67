r"""Pyro's Gaussian chains as the sites that they stand for.

.. math:: s_0 \sim N(m, V), \qquad s_t = A^\top s_{t-1} + w_t, \qquad y_t = C^\top s_t + v_t

with the matrices as Pyro orders them, (old, new). The sites hold the noises, for all steps at once;
``chain_reads.py`` says which states move them.
"""

import torch

from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.reading.gaussian.remembered import ChainArguments
from ember.inference.reading.opened_parts import joined_masks, moved_symbols, part_of
from ember.inference.reading.trace import Mask, TraceNode, made_frame, symbols_of

__all__ = ["open_gaussian_chain"]


def open_gaussian_chain(
    node: TraceNode,
    given: ChainArguments,
    batch: torch.Size,
    mask: Mask,
    time: str,
    steps: int,
) -> tuple[TraceNode, TraceNode, TraceNode]:
    """The first state, the states of all steps and the data, each at zero of all states.

    Args:
        node: The site.
        given: What its distribution was made from.
        batch: The batch of that distribution.
        mask: The masks of the distribution itself.
        time: The name of the plate of time steps.
        steps: How many there are.
    """
    value = node["value"]
    batch = broadcast_shapes(batch, value.shape[:-2])
    states = given.transition_matrix.shape[-1]
    symbols = symbols_of(node)
    stepwise = {-1: time, **moved_symbols(symbols, 1)}
    frame = made_frame(time, -1, steps)
    initial = part_of(node, given.initial, value.new_zeros(*batch, states), symbols, 0)
    state = part_of(node, given.transition, value.new_zeros(*batch, steps, states), stepwise, 1)
    data = part_of(node, given.observation, value, stepwise, 1)
    data["mask"] = joined_masks((node["mask"], mask), 1)
    for part in (initial, state):
        part["is_observed"] = False
    for part in (state, data):
        part["cond_indep_stack"] = (*part["cond_indep_stack"], frame)
    state["infer"]["_matrix"] = given.transition_matrix
    data["infer"]["_matrix"] = given.observation_matrix
    return initial, state, data
