"""What follows from draws of the parameters: the answers at each draw, along a leading dim."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.progress import counted
from ember.inference.plan.plan import Plan
from ember.inference.queries.prediction import latent_samples
from ember.inference.reading.sequences import members, stack
from ember.inference.reading.trace import Trace, TraceNode

__all__ = ["data_of", "latents_at", "pointwise_at", "replicates_at"]


Draws = Mapping[str, Tensor]


def latents_at(plan: Plan, draws: Draws) -> dict[str, Tensor]:
    """One joint draw of all latents from their posterior at each draw of the parameters.

    Latent site to ``(n, *shape)``; nothing if there are no latents.
    """
    if not plan.structure.latent and not plan.components and not plan.conjugate:
        return {}
    return _joined([latent_samples(plan, params, 1) for params in _each(draws)], torch.cat)


def _are_tied(plan: Plan) -> bool:
    """Whether Gaussian latents tie all rows, so that only given these has each its own density."""
    structure = plan.structure
    others = structure.latent or structure.conjugate or structure.gaussian_chains
    return plan.row is None and bool(structure.gaussian) and not others


def pointwise_at(plan: Plan, draws: Draws, latents: Draws) -> dict[str, Tensor]:
    r"""The log likelihood of each row at each draw, ``(n, N)``, by site or under ``joint``.

    Latents are integrated out, :math:`\log p(x_n \mid \theta)`. Where Gaussian latents tie all rows
    together, it is that of each row given a draw of them, :math:`\log p(x_n \mid z, \theta)`.
    """
    with torch.no_grad():
        if not _are_tied(plan):
            rows = [LogEvidence.of(plan).rows(params) for params in _each(draws)]
            observed = plan.structure.observed
            own = len(observed) == 1 and plan.sites[observed[0]].value.shape == rows[0].shape
            return {observed[0] if own else "joint": torch.stack(rows)}
        each = []
        for params, known in zip(_each(draws), _each(latents), strict=True):
            trace = plan.structure.run({**params, **_by_step(plan, known)})
            each.append(_observed(plan, trace, _log_prob))
        return _joined(each, torch.stack)


def replicates_at(plan: Plan, draws: Draws) -> dict[str, Tensor]:
    """New data of the shape of the old at each draw, latents drawn anew: ``(n, *shape)``."""
    with torch.no_grad():
        each = [_observed(plan, plan.structure.simulate(params)) for params in _each(draws)]
    return _joined(each, torch.stack)


def data_of(plan: Plan, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The data by observed site."""
    with torch.no_grad():
        return _observed(plan, plan.structure.run(params))


def _log_prob(node: TraceNode) -> Tensor:
    """The log density of each row, 0 where a mask leaves it out."""
    return node["fn"].log_prob(node["value"])


def _value(node: TraceNode) -> Tensor:
    return node["value"]


def _observed(
    plan: Plan, trace: Trace, of: Callable[[TraceNode], Tensor] = _value
) -> dict[str, Tensor]:
    """What a run says of the observed sites, steps of a loop along a dim of their own."""
    structure, found, leading = plan.structure, dict[str, Tensor](), dict[str, int]()
    for whole in structure.observed:
        if structure.is_channel(whole):
            continue
        for name in structure.own_names(whole):
            if name in trace.nodes:
                node = trace.nodes[name]
                found[name] = of(node).detach()
                events = node["fn"].event_dim if of is _value else 0
                leading[name] = found[name].dim() - events
    return stack(found, leading, structure.steps)


def _by_step(plan: Plan, latents: Draws) -> dict[str, Tensor]:
    """Latents under the names that the model has for them."""
    values = {}
    for name, value in latents.items():
        steps = members(name, plan.structure.gaussian)
        if name in plan.structure.gaussian or not steps:
            values[name] = value
            continue
        dim = value.dim() - 1 - plan.sites[steps[0]].event_dim
        values |= dict(zip(steps, value.unbind(dim), strict=True))
    return values


def _each(draws: Draws) -> Iterator[dict[str, Tensor]]:
    """The draws, one after the other."""
    for place in counted(range(len(next(iter(draws.values()), ()))), "draws"):
        yield {name: values[place] for name, values in draws.items()}


def _joined(
    each: list[dict[str, Tensor]], join: Callable[[list[Tensor]], Tensor]
) -> dict[str, Tensor]:
    return {name: join([one[name] for one in each]) for name in each[0]}
