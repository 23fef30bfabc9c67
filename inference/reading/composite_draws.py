"""Draws from distributions that hide a latent, the latent's own draws kept."""

from collections.abc import Mapping, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.reading.composites import Composite, bare, emits_at_once
from ember.inference.reading.gaussian.remembered import ChainArguments, arguments_of_chain
from ember.inference.reading.trace import Frame, Trace, TraceNode, made_frame, plates_of

__all__ = ["draw_composite", "hidden_draws"]


DRAWS = 4_000_000  # numbers held at once
FEW = 16


def draw_composite(msg: TraceNode, data: Tensor) -> None:
    """Draws the value of a site whose distribution hides a latent; leaves other sites alone.

    Args:
        msg: Pyro's message of the site.
        data: What was observed there; it says how many steps a chain has.
    """
    fn, _ = bare(msg["fn"])
    given = arguments_of_chain(fn)
    if given is None and not isinstance(fn, (dist.DiscreteHMM, dist.MixtureSameFamily)):
        return
    batch = broadcast_shapes(fn.batch_shape, *(_shape(plate) for plate in plates_of(msg)))
    hidden: list[Tensor] = []
    if given is not None:
        value, hidden = _gaussian_path(given, batch, data.shape[-2])
    elif isinstance(fn, dist.DiscreteHMM):
        state = _path(fn, batch, data.shape[data.dim() - fn.event_dim])
        hidden.append(state)
        value = _chosen(fn.observation_dist, state, hidden)
    else:
        assert isinstance(fn, dist.MixtureSameFamily)
        component = fn.mixture_distribution.expand(batch).sample()
        hidden.append(component)
        value = _chosen(fn.component_distribution, component, hidden)
    msg["value"], msg["done"] = value, True
    msg["infer"]["_hidden_draws"] = hidden


def hidden_draws(trace: Trace, composites: Sequence[Composite]) -> Mapping[str, TraceNode]:
    """The hidden latents of a trace as sites of their own."""
    latents: dict[str, TraceNode] = {}
    waiting = {name: list(node["infer"].get("_hidden_draws", ())) for name, node in _samples(trace)}
    for composite in composites:
        node = trace.nodes[composite.site]
        frames = plates_of(node)
        if not waiting[composite.site]:
            continue  # data that are not drawn
        value = waiting[composite.site].pop(0)
        if composite.gaussian:
            latents |= _gaussian_states(composite, node, value, waiting[composite.site].pop(0))
            continue
        times = [c for c in composites if c.site == composite.site and c.steps is not None]
        if times:
            frames = [f._replace(dim=f.dim - 1) for f in frames]
            frames.append(made_frame(times[0].time, -1, value.shape[-1]))
        latents[composite.latent] = {
            **node, "fn": dist.Categorical(torch.ones(2)), "value": value,
            "cond_indep_stack": tuple(frames),
        }  # fmt: skip
    return latents


def _gaussian_states(
    composite: Composite, node: TraceNode, first: Tensor, states: Tensor
) -> dict[str, TraceNode]:
    """The first states and those of all steps, as sites."""
    fn = dist.Normal(torch.zeros(first.shape[-1]), 1.0).to_event(1)
    frames = plates_of(node)
    time = made_frame(composite.time, -1, states.shape[-2])
    later = (*(f._replace(dim=f.dim - 1) for f in frames), time)
    return {
        composite.initial: {**node, "fn": fn, "value": first, "cond_indep_stack": tuple(frames)},
        composite.latent: {**node, "fn": fn, "value": states, "cond_indep_stack": later},
    }


def _samples(trace: Trace) -> list[tuple[str, TraceNode]]:
    return [(name, node) for name, node in trace.nodes.items() if node["type"] == "sample"]


def _shape(frame: Frame) -> tuple[int, ...]:
    return (frame.size, *(1,) * (-frame.dim - 1))


def _path(fn: dist.DiscreteHMM, batch: torch.Size, steps: int) -> Tensor:
    """States of all steps, ``(*batch, T)``.

    Where each state would lead is drawn first, for all steps at once; the path then follows.
    """
    first = fn.initial_logits.expand((*batch, -1))
    states = first.shape[-1]
    rows = batch.numel()
    moves = fn.transition_logits
    times = moves.shape[-3] if moves.dim() > 2 else 1
    moves = moves.expand((*batch, times, states, states)).reshape(rows, times, states, states)
    moves = moves.transpose(0, 1).expand(steps, -1, -1, -1)
    state = dist.Categorical(logits=first.reshape(rows, states)).sample()
    path = torch.empty(steps, rows, dtype=torch.long)
    width = max(1, DRAWS // (rows * states * states))
    for start in range(0, steps, width):
        leads = dist.Categorical(logits=moves[start : start + width]).sample()
        if start == 0 and emits_at_once(fn):
            leads[0] = state.unsqueeze(-1)  # the first state is where it begins
        if rows <= FEW:
            path[start : start + width] = _follow(leads, state)
        else:
            for t, lead in enumerate(leads, start):
                state = path[t] = lead.gather(1, state.unsqueeze(1)).squeeze(1)
        state = path[min(start + width, steps) - 1]
    return path.T.reshape((*batch, steps))


def _gaussian_path(
    given: ChainArguments, batch: torch.Size, steps: int
) -> tuple[Tensor, list[Tensor]]:
    """Data of all steps ``(*batch, T, D)``; the first states, and those of all steps."""
    state = first = given.initial.expand(batch).sample()
    noise = given.transition.expand((*batch, steps)).sample()
    size, width = given.observation_matrix.shape[-2:]
    moves = given.transition_matrix.expand((*batch, steps, size, size))
    path = []
    for t in range(steps):
        state = (state.unsqueeze(-2) @ moves[..., t, :, :]).squeeze(-2) + noise[..., t, :]
        path.append(state)
    states = torch.stack(path, -2)
    shows = given.observation_matrix.expand((*batch, steps, size, width))
    seen = (states.unsqueeze(-2) @ shows).squeeze(-2)
    return seen + given.observation.expand((*batch, steps)).sample(), [first, states]


def _follow(leads: Tensor, state: Tensor) -> Tensor:
    """The path of a few chains, in plain Python: a tensor operation for each step costs more."""
    paths = []
    for chain, begin in zip(leads.unbind(1), state.tolist(), strict=True):
        now, path = begin, []
        for row in chain.tolist():
            now = row[now]
            path.append(now)
        paths.append(path)
    return torch.tensor(paths).T


def _chosen(fn: Distribution, choice: Tensor, hidden: list[Tensor]) -> Tensor:
    """A draw of the distribution's last batch dim at ``choice``; mixtures are opened further."""
    fn, _ = bare(fn)
    states = fn.batch_shape[-1]
    each = fn.expand((*choice.shape, states))
    event = len(fn.event_shape)
    if isinstance(each, dist.MixtureSameFamily):
        mixture = each.mixture_distribution.sample()
        component = mixture.gather(-1, choice.unsqueeze(-1))
        hidden.append(component.squeeze(-1))
        parts = each.component_distribution.sample()
        picked = _pick(parts, choice, event, further=1)
        return _pick(picked, component.squeeze(-1), event)
    return _pick(each.sample(), choice, event)


def _pick(values: Tensor, choice: Tensor, event: int, further: int = 0) -> Tensor:
    """``values (*shape, K, *rest)`` at ``choice (*shape)``."""
    rest = values.dim() - choice.dim() - 1
    assert rest == event + further
    index = choice.reshape(*choice.shape, *(1,) * (rest + 1))
    index = index.expand(*choice.shape, 1, *values.shape[choice.dim() + 1 :])
    return values.gather(choice.dim(), index).squeeze(choice.dim())
