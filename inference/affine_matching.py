r"""Arguments that are affine in the parameters, as in a regression: ``x @ beta[z] + offset``.

Where no single entry of a parameter feeds an entry of the argument (see ``parameter_maps.py``),
the argument may still be a weighted sum of several entries,

.. math:: g(\text{argument}_{nk}) = \sum_f x_{nf}\, \theta_{e(k, f)} + b_{nk}.

The weights are differences between runs of the model with one entry moved at a time; runs at
random parameters then confirm that the argument is affine everywhere. The features ``x`` and the
entries ``e`` it multiplies are all that a weighted least-squares update needs, and with them the
argument can be computed without the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.affine import TO_SPACE, AffineMap, CoefficientTable, joined
from ember.inference.recognition import arguments_of, unwrap
from ember.inference.shapes import compact
from ember.inference.structure import Structure

__all__ = ["Moves", "match_affine"]

MOST_ENTRIES = 256  # a run of the model for each: beyond this the numerical update is cheaper
MOST_WEIGHTS = 200_000_000
SPACES = {"real": ("raw",), "positive": ("raw", "log"), "unit": ("logit",)}
TOLERANCE = 1e-8


class Moves:
    """Runs of the model with one parameter, or one entry of it, moved; each is run once."""

    def __init__(self, structure: Structure, origin: Mapping[str, Tensor]) -> None:
        self.structure, self.origin = structure, origin
        self._traces: dict[tuple[str, int | None], Any] = {}

    def __call__(self, name: str, entry: int | None = None) -> Any:
        """The run with an entry one larger, or the whole parameter moved inside its support."""
        if (name, entry) not in self._traces:
            value = self.origin[name].clone()
            if entry is None:
                parameter = self.structure.parameters[name]
                free = parameter.to_unconstrained(value) + 0.5
                value = parameter.to_constrained(free).expand(parameter.shape)
            else:
                value.view(-1)[entry] += 1.0
            self._traces[name, entry] = self.structure.trace({**self.origin, name: value})
        return self._traces[name, entry]


def match_affine(
    site: str,
    argument: str,
    domain: str,
    moves: Moves,
    params: Sequence[Mapping[str, Tensor]],
    traces: Sequence[Any],
) -> AffineMap | None:
    """The affine map of a scalar argument, or None if it is not affine in real parameters.

    Args:
        site: The site.
        argument: The name of its distribution's argument.
        domain: "real", "positive" or "unit".
        moves: Runs of the model around the first probe.
        params: The probes' parameters.
        traces: The probes' runs.
    """
    seen = [_value(trace, site, argument) for trace in traces]
    sources = _sources(site, argument, moves, seen[0])
    if sources is None:
        return None
    for space in SPACES.get(domain, ()):
        values = [TO_SPACE[space](value) for value in seen]
        if all(bool(torch.isfinite(value).all()) for value in values):
            weights = _weights(site, argument, space, moves, values[0], sources)
            if weights is not None and _confirmed(weights, sources, params, values):
                fn = traces[0].nodes[site]["fn"]
                inner = len(unwrap(fn).base.batch_shape) - len(fn.batch_shape)
                offset = values[0] - weights @ joined(sources, params[0])
                nesting = moves.structure.nesting + inner
                return _map(weights, offset, values[0], sources, domain, space, nesting)
    return None


def _value(trace: Any, site: str, argument: str) -> Tensor:
    value: Tensor = arguments_of(unwrap(trace.nodes[site]["fn"]).base)[argument][0][2]
    return value.detach()


def _sources(site: str, argument: str, moves: Moves, before: Tensor) -> tuple[str, ...] | None:
    """Parameters that move the argument, if all of them range over the reals and are few."""
    found = []
    for name, parameter in moves.structure.parameters.items():
        if torch.equal(_value(moves(name), site, argument), before):
            continue
        if not _is_real(parameter.support):
            return None
        found.append(name)
    count = sum(moves.structure.parameters[name].shape.numel() for name in found)
    few = 0 < count <= MOST_ENTRIES and count * before.numel() <= MOST_WEIGHTS
    return tuple(found) if few else None


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def _weights(
    site: str, argument: str, space: str, moves: Moves, before: Tensor, sources: tuple[str, ...]
) -> Tensor | None:
    """The change of the argument as each entry moves by one, shape ``(*batch, P)``."""
    columns = []
    for name in sources:
        for entry in range(moves.origin[name].numel()):
            after = _value(moves(name, entry), site, argument)
            if after.shape != before.shape:
                return None
            columns.append(TO_SPACE[space](after) - before)
    weights = torch.stack(columns, -1)
    # What is left of a difference of equal numbers is rounding, not a weight.
    return torch.where(weights.abs() > 1e-13 * (1.0 + before.abs().max()), weights, 0.0)


def _confirmed(
    weights: Tensor,
    sources: tuple[str, ...],
    params: Sequence[Mapping[str, Tensor]],
    values: list[Tensor],
) -> bool:
    origin = joined(sources, params[0])
    for at, value in zip(params[1:], values[1:], strict=True):
        predicted = values[0] + weights @ (joined(sources, at) - origin)
        if not bool(((predicted - value).abs() <= TOLERANCE * (1.0 + value.abs())).all()):
            return False
    return True


def _map(
    weights: Tensor,
    offset: Tensor,
    value: Tensor,
    sources: tuple[str, ...],
    domain: str,
    space: str,
    nesting: int,
) -> AffineMap:
    """Brings dense weights to features and the entries that they multiply.

    Dims left of ``nesting`` are the latents'; which entries are read may vary with these alone.
    """
    offset = torch.where(offset.abs() > 1e-12 * (1.0 + value.abs().max()), offset, 0.0)
    batch = weights.dim() - 1
    enumerated = max(0, batch - nesting)
    used = (weights != 0).reshape((*weights.shape[:enumerated], -1, weights.shape[-1])).any(-2)
    states = used.reshape(-1, used.shape[-1])
    width = max(1, int(states.sum(-1).max()))
    order = torch.argsort((~states).to(torch.int8), dim=-1, stable=True)[:, :width]
    rows, index = torch.unique(order, dim=0, return_inverse=True)
    shape = (*used.shape[:-1], *(1,) * (batch - enumerated))
    entries = order.reshape(*shape, width).expand(*weights.shape[:-1], width)
    return AffineMap(
        domain,
        space,
        CoefficientTable(sources, tuple(tuple(row) for row in rows.tolist())),
        index.reshape(shape),
        compact(weights.gather(-1, entries), keep=1),
        compact(offset),
    )
