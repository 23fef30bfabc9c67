r"""Finds which entry of which parameter feeds which entry of a distribution's argument.

The model is run at a few random valid parameter values. An argument entry that is one and the
same function

.. math:: g(\text{argument entry}) = c\, f(\text{parameter entry}) + b

at every run, with ``f`` and ``g`` among identity, logarithm, logit and softmax, is a *gather* of
parameter entries: an index, a coefficient and an offset describe it, and its transpose scatters
statistics back. The quotient ``(v1 - v2) / (v2 - v3)`` over three runs does not depend on ``c``
and ``b``, so equal quotients find the partner; two more runs confirm it. Anything else about an
argument (``sigmoid(a * b)``, a matrix product) is left to the model itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pyro.distributions.constraints import positive_ordered_vector
from torch import Tensor
from torch.distributions import constraints, transform_to

from ember.inference.numerics.draws import Draws
from ember.inference.numerics.shapes import unexpanded
from ember.inference.parameters.argument_map import ON, ArgumentMap, ParameterRows, row_count
from ember.inference.parameters.parameter import Parameter
from ember.inference.parameters.supports import base_support
from ember.inference.reading.structure import Structure

__all__ = ["ArgumentValues", "free_probe", "match_argument", "probe_values"]


PROBES = 5
SPREAD = 0.7  # of free coordinates
FEW_ROWS = 8  # of a matrix
TOLERANCE = 1e-9  # relative
ROUNDING = 1e-13  # relative to the numbers that a difference is taken of


@dataclass(frozen=True)
class ArgumentValues:
    """One argument of one site as seen in each probe, and the domain it lives in."""

    domain: str
    event_dim: int
    values: list[Tensor]


def probe_values(structure: Structure, seed: int) -> dict[str, Tensor]:
    """A random valid value of every parameter, its entries distinct almost surely."""
    free = free_probe(structure, seed)
    return {
        name: parameter.to_constrained(free[name]).expand(parameter.shape).clone()
        for name, parameter in structure.parameters.items()
    }


def free_probe(structure: Structure, seed: int) -> dict[str, Tensor]:
    """The free coordinates of random values.

    The last probe mirrors the first: entries that were large are small, so that a model that
    sorts its parameters, or branches on their signs, gives itself away.
    """
    sign = -1.0 if seed == PROBES - 1 else 1.0
    draws = Draws(0 if seed == PROBES - 1 else seed)
    values = {}
    for name, parameter in structure.parameters.items():
        free = transform_to(parameter.support).inverse_shape(parameter.shape)
        values[name] = sign * _spread(parameter) * draws.normal(free)
    return values


def _spread(parameter: Parameter) -> float:
    """The standard deviation of the free coordinates of a probe.

    The condition number of a random triangular matrix grows exponentially with its rows, unless
    what lies off its diagonal shrinks with their number.
    """
    rows = parameter.shape[-1] if parameter.support.event_dim == 2 else 1
    return SPREAD * min(1.0, math.sqrt(FEW_ROWS / rows))


def match_argument(
    argument: ArgumentValues,
    parameters: Mapping[str, Parameter],
    probes: Sequence[Mapping[str, Tensor]],
) -> ArgumentMap | None:
    """The map of one argument, or None if it is none of the kinds that a map can describe."""
    values = [unexpanded(value.detach(), argument.event_dim) for value in argument.values]
    if all(value.shape == values[0].shape for value in values[1:]):
        if all(torch.equal(value, values[0]) for value in values[1:]):
            return _constant(argument, values[0])
        for space, on in _candidates(argument.domain):
            found = _match(argument, space, on, values, parameters, probes)
            if found is not None:
                return found
    return None


def _candidates(domain: str) -> list[tuple[str, str]]:
    match domain:
        case "positive":
            return [("log", "log"), ("log", "raw")]
        case "unit":
            return [("raw", "raw"), ("logit", "raw")]
        case "simplex":
            return [("raw", "raw"), ("raw", "softmax")]
        case _:
            return [("raw", "raw")]


def _match(
    argument: ArgumentValues,
    space: str,
    on: str,
    values: list[Tensor],
    parameters: Mapping[str, Parameter],
    probes: Sequence[Mapping[str, Tensor]],
) -> ArgumentMap | None:
    event_dim = argument.event_dim
    batch_shape = values[0].shape[: values[0].dim() - event_dim]
    event_shape = values[0].shape[values[0].dim() - event_dim :]
    names = _eligible(argument, on, event_shape, parameters)
    if not names:
        return None
    to_space = {"raw": ON["raw"], "log": ON["log"], "logit": torch.logit}[space]
    entries = torch.stack([to_space(v).reshape(-1, event_shape.numel()) for v in values])
    table = ParameterRows(names, on, event_dim)
    rows = torch.stack([table.rows(p).reshape(-1, event_shape.numel()) for p in probes])
    index = _nearest(_quotient(entries[..., 0]), _quotient(rows[..., 0]))
    if event_dim and _alike(entries, rows[:, index]):
        # Whole rows as they are, the common case: no need to look for numbers that move them.
        table, index = _prune(table, index, torch.unique(index), parameters)
        one, nothing = torch.ones(batch_shape), torch.zeros((1,) * values[0].dim())
        index = index.reshape(batch_shape)
        return ArgumentMap(argument.domain, space, table, index, one, nothing)
    line = _line(entries, rows[:, index], space, event_dim)
    if line is None:
        return None
    coefficient, offset = line
    constant = (entries == entries[0]).all(0).all(-1)
    used = torch.unique(index[~constant])
    index = torch.where(constant, used[0], index)
    table, index = _prune(table, index, used, parameters)
    return ArgumentMap(
        argument.domain,
        space,
        table,
        index.reshape(batch_shape),
        coefficient.reshape(batch_shape),
        offset.reshape(values[0].shape) if event_dim else offset.reshape(batch_shape),
    )


def _line(
    entries: Tensor, partner: Tensor, space: str, event_dim: int
) -> tuple[Tensor, Tensor] | None:
    """The coefficient and the offset of each entry of an argument, as a line in its partner.

    Args:
        entries: The argument in each probe, ``(probes, entries, numbers of an event)``.
        partner: The row of parameters that each entry may follow, of the same shape.
        space: The space in which it may.
        event_dim: The number of dims of an event.

    Returns:
        None if it is no such line in some probe.
    """
    away = partner[0, :, 0] - partner[1, :, 0]
    coefficient = (entries[0, :, 0] - entries[1, :, 0]) / away
    constant = (entries == entries[0]).all(0).all(-1)
    coefficient = torch.where(constant, torch.zeros(()), coefficient)
    size = entries.abs().amax(0) + (0.0 if space == "raw" else 1.0)
    if event_dim:
        # Vectors, simplices and matrices are taken whole: at most scaled, never moved.
        offset = torch.where(constant[:, None], entries[0], torch.zeros(()))
    else:
        offset = (entries[0, :, 0] - coefficient * partner[0, :, 0]).unsqueeze(-1)
        lever = 1.0 + (partner[0, :, 0] / away).abs().nan_to_num(nan=0.0, posinf=0.0)
        offset = torch.where(constant[:, None], entries[0], _tidy(offset, size * lever[:, None]))
    coefficient = _tidy(coefficient, coefficient.abs() * TOLERANCE / ROUNDING)
    predicted = coefficient[None, :, None] * partner + offset
    # The error is measured by how far the argument moves, not by how large it is.
    moves = entries.amax(0) - entries.amin(0)
    error = (predicted - entries).abs().amax(0)
    if not bool((error.isfinite() & (error <= TOLERANCE * moves + ROUNDING * size)).all()):
        return None
    return coefficient, offset


def _eligible(
    argument: ArgumentValues, on: str, event: torch.Size, parameters: Mapping[str, Parameter]
) -> tuple[str, ...]:
    """Parameters whose rows could be rows of the argument, transform applied."""
    names = []
    for name, parameter in parameters.items():
        shape = parameter.shape
        if len(shape) < len(event) or shape[len(shape) - len(event) :] != event:
            continue
        if on == "log" and not _is_positive(parameter.support):
            continue
        names.append(name)
    return tuple(names)


def _is_positive(support: constraints.Constraint) -> bool:
    support = base_support(support)
    bound = getattr(support, "lower_bound", None)
    if support in (constraints.simplex, constraints.unit_interval, positive_ordered_vector):
        return True
    return bound is not None and bool((torch.as_tensor(bound) >= 0).all())


def _quotient(values: Tensor) -> Tensor:
    quotient = (values[0] - values[1]) / (values[1] - values[2])
    return quotient.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)


def _nearest(keys: Tensor, among: Tensor) -> Tensor:
    """For each key the position of the closest of ``among``."""
    ordered, order = torch.sort(among)
    right = torch.searchsorted(ordered, keys).clamp(0, len(ordered) - 1)
    left = (right - 1).clamp_min(0)
    closer = (keys - ordered[left]).abs() <= (ordered[right] - keys).abs()
    return order[torch.where(closer, left, right)]


def _prune(
    table: ParameterRows, index: Tensor, used: Tensor, parameters: Mapping[str, Parameter]
) -> tuple[ParameterRows, Tensor]:
    """Drops the sources that no entry points to."""
    names, shifts, start, dropped = [], [], 0, 0
    bounds = torch.zeros_like(index)
    for name in table.sources:
        count = row_count(parameters[name].shape, table.event_dim)
        inside = (used >= start) & (used < start + count)
        if bool(inside.any()):
            names.append(name)
            bounds = torch.where((index >= start) & (index < start + count), dropped, bounds)
        else:
            dropped += count
        shifts.append(dropped)
        start += count
    return ParameterRows(tuple(names), table.on, table.event_dim), (index - bounds).clamp_min(0)


def _constant(argument: ArgumentValues, value: Tensor) -> ArgumentMap:
    batch_shape = value.shape[: value.dim() - argument.event_dim]
    index = torch.zeros(batch_shape, dtype=torch.long)
    return ArgumentMap(argument.domain, "raw", None, index, torch.zeros(batch_shape), value)


def _alike(entries: Tensor, rows: Tensor) -> bool:
    """Whether the entries of an argument are those of rows of a table, in every run."""
    return bool(((rows - entries).abs().amax(0) <= ROUNDING * entries.abs().amax(0)).all())


def _tidy(value: Tensor, uncertain: Tensor) -> Tensor:
    """Rounds numbers that differ from a multiple of 1/2 (1, -0.5, 0) by no more than rounding.

    Args:
        value: The numbers.
        uncertain: The size of the numbers that they are differences of.
    """
    nearest = (2.0 * value).round() / 2.0
    return torch.where((value - nearest).abs() <= ROUNDING * uncertain, nearest, value)
