"""Distributions in exponential-family form: one rule for each, from arguments to slots.

A rule gets a distribution and the maps of its arguments. It says which family the distribution
belongs to, which slot each argument feeds, and how data become sufficient statistics; numbers
that multiply or move a parameter are absorbed into the statistics. Or it says in a few words why
there is no such form.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families import (
    LOG_2PI,
    Bernoulli,
    Categorical,
    Location,
    MultivariateNormal,
    Normal,
    Rate,
    safe_log,
)
from ember.inference.reading.parameter_maps import ArgumentMap
from ember.inference.shapes import compact
from ember.inference.slots import Form, Slot

__all__ = ["COUNTED", "RULES", "counts_of", "rate_slot"]

COUNTED = (dist.Categorical, dist.OneHotCategorical, dist.Multinomial)
Maps = Mapping[str, ArgumentMap]
Names = Mapping[str, str]


def rate_slot(found: ArgumentMap, power: float) -> tuple[Slot, Tensor, Tensor] | str:
    """Slot, index and coefficient ``c`` with ``argument ** power = c * r[index]``."""
    no_rows = torch.zeros(0)
    if found.table is None:
        values, index = torch.unique(found.offset**power, return_inverse=True)
        return Slot("rate", None, "constant", 1.0, values), index, torch.ones(())
    free = found.coefficient != 0
    exponents = torch.unique(found.coefficient[free])
    if len(exponents) != 1:
        return "the argument raises its parameter to different powers"
    slot = Slot("rate", found.table, "exp", power * float(exponents[0]), no_rows)
    if bool(free.all()):
        return slot, found.index, compact(torch.exp(power * found.offset))
    return _with_constants(slot, found, torch.exp(power * found.offset), multiplies=True)


def _location_slot(found: ArgumentMap) -> tuple[Slot, Tensor, Tensor] | str:
    """Slot, index and offset ``b`` with ``argument = m[index] + b``."""
    no_rows = torch.zeros(0)
    if found.table is None:
        zero = torch.zeros(found.offset.shape, dtype=torch.long)
        return Slot("location", None, "constant", 1.0, torch.zeros(1)), zero, compact(found.offset)
    slot = Slot("location", found.table, "identity", 1.0, no_rows)
    free = found.coefficient != 0
    if not bool((found.coefficient[free] == 1.0).all()):
        return "the location multiplies its parameter by a number"
    if bool(free.all()):
        return slot, found.index, compact(found.offset)
    return _with_constants(slot, found, found.offset, multiplies=False)


def _with_constants(
    slot: Slot, found: ArgumentMap, offset: Tensor, multiplies: bool
) -> tuple[Slot, Tensor, Tensor]:
    """Moves the constant entries of a mixed argument into rows of their own."""
    free = found.coefficient != 0
    values, places = torch.unique(offset[~free], return_inverse=True)
    index = found.index.clone()
    # Rows of constants follow the table's; -1 - i stands for the i-th until the table's length
    # is known, and counts from the end once they are appended.
    index[~free] = places - len(values)
    neutral = torch.full_like(offset, 1.0 if multiplies else 0.0)
    full = Slot(slot.kind, slot.table, slot.link, slot.exponent, values)
    return full, index, compact(torch.where(free, offset, neutral))


def _poisson(base: Any, maps: Maps, names: Names) -> Form | str:
    bound = rate_slot(maps["rate"], 1.0)
    if isinstance(bound, str):
        return bound
    slot, index, c = bound

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        x, exposure = torch.broadcast_tensors(x, c)
        return torch.stack([x, exposure], -1), x * safe_log(exposure) - torch.lgamma(x + 1.0)

    return Form(Rate(), (slot,), (index,), statistics)


def _exponential(base: Any, maps: Maps, names: Names) -> Form | str:
    bound = rate_slot(maps["rate"], 1.0)
    if isinstance(bound, str):
        return bound
    slot, index, c = bound

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        return torch.stack([torch.ones_like(c * x), c * x], -1), safe_log(c) + torch.zeros_like(x)

    return Form(Rate(), (slot,), (index,), statistics)


def _gamma(base: Any, maps: Maps, names: Names) -> Form | str:
    shape = maps["concentration"]
    if not shape.is_constant:
        return "the shape of a Gamma has no closed form"
    bound = rate_slot(maps["rate"], 1.0)
    if isinstance(bound, str):
        return bound
    slot, index, c = bound
    a = compact(shape.offset)

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        h = (a - 1.0) * safe_log(x) - torch.lgamma(a) + a * safe_log(c)
        return torch.stack(torch.broadcast_tensors(a, c * x), -1), h

    return Form(Rate(), (slot,), (index,), statistics)


def _success(found: ArgumentMap) -> tuple[Slot, Tensor, Tensor] | str:
    """Slot, index and the entries at which the argument is the complement ``1 - p`` of it."""
    no_rows, none = torch.zeros(0), torch.zeros((), dtype=torch.bool)
    if found.table is None:
        values, index = torch.unique(found.offset, return_inverse=True)
        return Slot("probability", None, "constant", 1.0, values), index, none
    c, b = found.coefficient, found.offset
    fixed, complement = c == 0.0, (c == -1.0) & (b == 1.0)
    link = "sigmoid" if found.space == "logit" else "identity"
    if link == "sigmoid":
        complement = none
    if not bool((fixed | complement | ((c == 1.0) & (b == 0.0))).all()):
        return "the probability is neither p, 1 - p nor sigmoid of a parameter"
    slot = Slot("probability", found.table, link, 1.0, no_rows)
    if not bool(fixed.any()):
        return slot, found.index, compact(complement)
    constants = torch.sigmoid(b) if link == "sigmoid" else b
    full, index, _ = _with_constants(slot, found, constants, multiplies=False)
    return full, index, compact(complement)


def _bernoulli(base: Any, maps: Maps, names: Names) -> Form | str:
    if "total_count" in maps and not maps["total_count"].is_constant:
        return "the total count depends on a parameter"
    bound = _success(maps["probs"])
    if isinstance(bound, str):
        return bound
    slot, index, complement = bound
    total = compact(maps["total_count"].offset) if "total_count" in maps else torch.ones(())

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        if isinstance(base, dist.Geometric):
            a, b, h = torch.ones_like(x), x, None
        else:
            a, b, h = x, total - x, None
        if isinstance(base, dist.Binomial):
            h = torch.lgamma(total + 1.0) - torch.lgamma(a + 1.0) - torch.lgamma(b + 1.0)
        a, b, swapped = torch.broadcast_tensors(a, b, complement)
        pair = torch.where(swapped, b, a), torch.where(swapped, a, b)
        return torch.stack(pair, -1), h

    return Form(Bernoulli(), (slot,), (index,), statistics)


def counts_of(base: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """How often each category occurs in data, and the base measure, or None where it is zero."""
    if isinstance(base, dist.Categorical):
        levels = base.probs.shape[-1]
        return torch.nn.functional.one_hot(x.long(), levels).to(base.probs.dtype), None
    if isinstance(base, dist.Multinomial):
        return x, torch.lgamma(x.sum(-1) + 1.0) - torch.lgamma(x + 1.0).sum(-1)
    return x, None


def _categorical(base: Any, maps: Maps, names: Names) -> Form | str:
    found = maps["probs"]
    if found.table is None:
        flat = found.offset.reshape(-1, found.offset.shape[-1])
        slot = Slot("simplex", None, "constant", 1.0, flat)
        index = torch.arange(len(flat)).reshape(found.offset.shape[:-1])
    elif not bool((found.coefficient == 1.0).all()):
        return "the probabilities mix parameters with constants"
    else:
        slot = Slot("simplex", found.table, "identity", 1.0, torch.zeros(0))
        index = found.index

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        return counts_of(base, x)

    event_dim = 0 if isinstance(base, dist.Categorical) else 1
    return Form(Categorical(), (slot,), (index,), statistics, event_dim)


def _normal(base: Any, maps: Maps, names: Names) -> Form | str:
    location = _location_slot(maps["loc"])
    rate = rate_slot(maps["scale"], -2.0)
    if isinstance(location, str):
        return location
    if isinstance(rate, str):
        return rate
    m_slot, m_index, b = location
    r_slot, r_index, c = rate
    is_log = isinstance(base, dist.LogNormal)

    def data(x: Tensor) -> tuple[Tensor, Tensor]:
        return (safe_log(x) - b, -safe_log(x)) if is_log else (x - b, torch.zeros(()))

    def scale_only(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        z, h = data(x)
        half = torch.full_like(c * z, 0.5)
        return torch.stack([half, 0.5 * c * z * z], -1), h + 0.5 * (
            safe_log(c) - LOG_2PI
        ) + torch.zeros_like(z)

    def location_only(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        z, h = data(x)
        z = z - reference
        r = c * r_slot.constants[r_index]
        both = torch.stack(torch.broadcast_tensors(r * z, r), -1)
        return both, h + 0.5 * (safe_log(r) - r * z * z - LOG_2PI)

    def both(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        z, h = data(x)
        z = z - reference
        return torch.stack([torch.ones_like(z), z, z * z], -1), h if is_log else None

    if m_slot.table is None:
        return Form(Rate(), (r_slot,), (r_index,), scale_only)
    if r_slot.table is None:
        return Form(Location(), (m_slot,), (m_index,), location_only, 0, data_of(data))
    if not bool((c == 1.0).all()):
        return "the scale multiplies its parameter by a number that varies"
    return Form(Normal(), (m_slot, r_slot), (m_index, r_index), both, 0, data_of(data))


def data_of(data: Callable[[Tensor], tuple[Tensor, Any]]) -> Callable[[Tensor], Tensor]:
    """The values whose mean is a good reference point for a location family."""
    return lambda x: data(x)[0]


def _multivariate_normal(base: Any, maps: Maps, names: Names) -> Form | str:
    m, matrix, matrix_name = maps["loc"], maps["matrix"], names["matrix"]
    link = {"precision_matrix": "identity", "covariance_matrix": "inverse", "scale_tril": "outer"}
    if matrix.table is None:
        flat = matrix.offset.reshape(-1, *matrix.offset.shape[-2:])
        index = torch.arange(len(flat)).reshape(matrix.offset.shape[:-2])
        p_slot = Slot("matrix", None, link[matrix_name], 1.0, flat)
        c = torch.ones(())
    else:
        c = matrix.coefficient
        if not bool((c > 0).all()):
            return "the matrix argument mixes parameters with constants"
        p_slot = Slot("matrix", matrix.table, link[matrix_name], 1.0, torch.zeros(0))
        c = {"precision_matrix": c, "covariance_matrix": 1.0 / c, "scale_tril": c**-2.0}[
            matrix_name
        ]
        c = compact(c)
        index = matrix.index
    dim = base.loc.shape[-1]
    if m.table is None:
        m_slot = Slot("vector", None, "constant", 1.0, torch.zeros(1, dim))
        m_index, b = torch.zeros(m.offset.shape[:-1], dtype=torch.long), m.offset
    elif not bool((m.coefficient == 1.0).all()):
        return "the location mixes parameters with constants or multiplies them"
    else:
        m_slot = Slot("vector", m.table, "identity", 1.0, torch.zeros(0))
        m_index, b = m.index, torch.zeros(())
    if m_slot.table is not None and not bool((c == 1.0).all()):
        return "the matrix argument multiplies its parameter by a number"

    def data(x: Tensor) -> tuple[Tensor, Any]:
        return x - b, None

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        z = data(x)[0] - reference
        if bool((c == 1.0).all()):
            return MultivariateNormal.statistics(z), None
        z = z * c.sqrt().unsqueeze(-1)
        return MultivariateNormal.statistics(z), (0.5 * dim * safe_log(c)).expand(
            z.shape[:-1]
        )

    reference = data_of(data) if m_slot.table is not None else None
    return Form(
        MultivariateNormal(), (m_slot, p_slot), (m_index, index), statistics, 1, reference
    )


RULES: list[tuple[Any, Callable[[Any, Maps, Names], Form | str]]] = [
    (dist.Poisson, _poisson),
    (dist.Exponential, _exponential),
    (dist.Gamma, _gamma),
    ((dist.Bernoulli, dist.Binomial, dist.Geometric), _bernoulli),
    (COUNTED, _categorical),
    ((dist.LogNormal, dist.Normal), _normal),
    (dist.MultivariateNormal, _multivariate_normal),
]
