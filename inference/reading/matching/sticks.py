"""Finds probabilities of categories that are products of powers of a parameter; see ``StickMap``.

Along ``v_j`` the logarithm of such a product has the derivative ``a / v_j - b / (1 - v_j)``, so
the derivatives at two probes give the powers, which must come out as whole numbers. All probes
then confirm them, for every row of the argument.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.families.kinds import PROBABILITY
from ember.inference.families.links import IDENTITY
from ember.inference.families.sticks import StickMap
from ember.inference.numerics.shapes import unexpanded
from ember.inference.parameters.argument_map import ParameterRows
from ember.inference.reading.distributions import arguments_of
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import unwrap

__all__ = ["match_sticks"]


TOLERANCE = 1e-9
WHOLE = 1e-6  # how near to a whole number a power must come out


def match_sticks(
    site: str, structure: Structure, params: Sequence[Mapping[str, Tensor]], traces: Sequence[Trace]
) -> StickMap | None:
    """The map of the probabilities of a site over categories, or None if they are no such products.

    Args:
        site: The site.
        structure: The roles of all sites.
        params: The parameters of the probes.
        traces: The probes themselves.
    """
    probs = [_probs(trace, site).detach() for trace in traces]
    for source, parameter in structure.parameters.items():
        if not PROBABILITY.natural(parameter.support, IDENTITY):
            continue
        one, two = (_derivatives(site, source, structure, at) for at in params[:2])
        if one is None or two is None:
            continue
        for event_dim in (1, 0) if parameter.shape else (0,):
            table = ParameterRows((source,), "raw", event_dim)
            powers = _powers(table, params, (one, two))
            mapped = None if powers is None else _mapped(table, powers, params, probs)
            if mapped is not None:
                return mapped
    return None


def _probs(trace: Trace, site: str) -> Tensor:
    return unexpanded(arguments_of(unwrap(trace.nodes[site]["fn"]).base)["probs"][0][2], 1)


def _derivatives(
    site: str, source: str, structure: Structure, params: Mapping[str, Tensor]
) -> Tensor | None:
    """Of the logarithms of the first row of probabilities, ``(K, *shape)``; None without any."""
    leaf = params[source].clone().requires_grad_()
    with torch.enable_grad():
        probs = _probs(structure.trace({**params, source: leaf}), site)
        logs = probs.reshape(-1, probs.shape[-1])[0].log()
    if not logs.requires_grad:
        return None
    rows = [torch.autograd.grad(log, leaf, retain_graph=True)[0] for log in logs]
    derivatives = torch.stack(rows)
    return derivatives if bool((derivatives != 0).any()) else None


def _powers(
    table: ParameterRows, params: Sequence[Mapping[str, Tensor]], derivatives: tuple[Tensor, Tensor]
) -> Tensor | None:
    """The powers ``(K, 2 J)`` if the first row of probabilities depends on one row of the table."""
    one, two = (_by_row(table.rows(at), table.event_dim) for at in params[:2])
    steps = [d.reshape(len(d), *one.shape) for d in derivatives]
    touched = (steps[0] != 0).any(0).any(-1).nonzero().reshape(-1)
    if len(touched) != 1:
        return None
    row = int(touched)
    v, u = one[row], two[row]
    # With the derivative d, v (1 - v) d = a - (a + b) v.
    first, second = steps[0][:, row] * v * (1.0 - v), steps[1][:, row] * u * (1.0 - u)
    both = (first - second) / (u - v)
    successes = first + both * v
    powers = torch.cat([successes, both - successes], -1)
    whole = powers.round()
    if not bool(((powers - whole).abs() <= WHOLE).all()) or bool((whole < 0).any()):
        return None
    return whole


def _by_row(rows: Tensor, event_dim: int) -> Tensor:
    return rows if event_dim else rows.unsqueeze(-1)


def _mapped(
    table: ParameterRows,
    powers: Tensor,
    params: Sequence[Mapping[str, Tensor]],
    probs: Sequence[Tensor],
) -> StickMap | None:
    """The map with the row of the table behind each row of probabilities, if all probes agree."""
    batch = probs[0].shape[:-1]
    if any(each.shape != probs[0].shape for each in probs):
        return None
    flat = [each.reshape(-1, each.shape[-1]) for each in probs]
    nothing = torch.zeros(len(powers))
    map_ = StickMap(table, torch.zeros(batch, dtype=torch.long), powers, nothing)
    plain = [map_.of_rows(table.rows(at)) for at in params]
    # The constants are those at which some row of the table explains the first one.
    for constants in (flat[0][0] / plain[0]).log():
        products = [each * constants.exp() for each in plain]
        index = torch.cdist(flat[0], products[0]).argmin(-1)
        if all(
            bool(((p[index] - s).abs() <= TOLERANCE * s).all())
            for p, s in zip(products, flat, strict=True)
        ):
            tidy = torch.where(constants.abs() < TOLERANCE, 0.0, constants)
            return StickMap(table, index.reshape(batch), powers, tidy)
    return None
