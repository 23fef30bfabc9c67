"""A site in exponential-family form: which parameters its family has, and where it reads them."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.families.family import Family
from ember.inference.numerics.log_space import safe_log
from ember.inference.numerics.shapes import compact
from ember.inference.parameters.affine_map import ParameterEntries
from ember.inference.parameters.argument_map import ArgumentMap, ParameterRows

__all__ = [
    "ExponentialForm",
    "FamilyParameter",
    "Maps",
    "Names",
    "Recogniser",
    "data_of",
    "exponential_form",
    "location_parameter",
    "rate_parameter",
    "recogniser_of",
    "with_constants",
]


@dataclass(frozen=True)
class FamilyParameter:
    """Where a parameter of a family gets its values: rows of a table, then known constants."""

    kind: str
    table: ParameterRows | ParameterEntries | None
    link: str
    exponent: float
    constants: Tensor

    @property
    def sources(self) -> tuple[str, ...]:
        return () if self.table is None else self.table.sources

    @property
    def digest(self) -> str:
        """Equal for family parameters that read the same values, in every process."""
        where = (self.kind, self.table, self.link, self.exponent, tuple(self.constants.shape))
        digest = hashlib.sha1(repr(where).encode(), usedforsecurity=False)
        digest.update(self.constants.detach().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def values(self, params: Mapping[str, Tensor]) -> Tensor:
        """Every value the family parameter can take at ``params``, shape ``(R, *event)``."""
        if self.table is None:
            return self._known
        rows = self._linked(self.table.rows(params))
        return torch.cat([rows, self.constants]) if len(self.constants) else rows

    @functools.cached_property
    def _known(self) -> Tensor:
        return self._linked(self.constants)

    def _linked(self, rows: Tensor) -> Tensor:
        match self.link:
            case "exp":
                return torch.exp(self.exponent * rows)
            case "sigmoid":
                return torch.sigmoid(rows)
            case "inverse":
                return torch.cholesky_inverse(torch.linalg.cholesky_ex(rows)[0])
            case "outer":
                return torch.cholesky_inverse(rows)
            case _:
                return rows

    def roots(self, params: Mapping[str, Tensor]) -> Tensor:
        """Of a matrix: the Cholesky factors of what the model declares, ``(R, D, D)``.

        They are those of precisions where ``link`` is "identity", else of covariances.
        """
        return self._known_roots if self.table is None else self._rooted(self.table.rows(params))

    @functools.cached_property
    def _known_roots(self) -> Tensor:
        return self._rooted(self.constants)

    def _rooted(self, rows: Tensor) -> Tensor:
        factor: Tensor = rows if self.link == "outer" else torch.linalg.cholesky_ex(rows)[0]
        return factor

    def parameter(self, value: Tensor) -> Tensor:
        """Rows of the table from values: the inverse of ``values`` without the constants.

        Matrices are not among them: see ``contribution_to_maximiser``.
        """
        match self.link:
            case "exp" if self.table is not None and self.table.on == "log":
                return torch.pow(value, 1.0 / self.exponent)
            case "exp":
                return safe_log(value) / self.exponent
            case "sigmoid":
                return torch.logit(value, eps=torch.finfo(value.dtype).tiny)
            case _:
                on_softmax = self.table is not None and self.table.on == "softmax"
                return safe_log(value) if on_softmax else value


@dataclass(frozen=True)
class ExponentialForm:
    """A site in exponential-family form.

    ``indices`` holds, for each family parameter, the row of its table (batch-shaped);
    ``statistics(value)`` gives ``T`` of shape ``(*batch, P)`` and the base measure ``h``, or None
    where it is zero. The second argument is what the data are measured from: the mean of what
    ``centred`` gives, or in a regression the frame of the features, responses and weights that
    ``design`` gives.
    """

    family: Family
    parameters: tuple[FamilyParameter, ...]
    indices: tuple[Tensor, ...]
    statistics: Callable[[Tensor, Any], tuple[Tensor, Tensor | None]]
    event_dim: int = 0
    centred: Callable[[Tensor], Tensor] | None = None
    design: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None = None


Maps = Mapping[str, ArgumentMap]
Names = Mapping[str, str]
Recogniser = Callable[[Any, Maps, Names], ExponentialForm | str]
"""From a distribution, the maps of its arguments, and their names: its form, or why it has none."""

_RECOGNISERS: dict[type, Recogniser] = {}


def rate_parameter(
    found: ArgumentMap, power: float
) -> tuple[FamilyParameter, Tensor, Tensor] | str:
    """Slot, index and coefficient ``c`` with ``argument ** power = c * r[index]``."""
    no_rows = torch.zeros(0)
    if found.table is None:
        values, index = torch.unique(found.offset**power, return_inverse=True)
        return FamilyParameter("rate", None, "constant", 1.0, values), index, torch.ones(())
    free = found.coefficient != 0
    exponents = torch.unique(found.coefficient[free])
    if len(exponents) != 1:
        return "the argument raises its parameter to different powers"
    family_parameter = FamilyParameter(
        "rate", found.table, "exp", power * float(exponents[0]), no_rows
    )
    if bool(free.all()):
        return family_parameter, found.index, compact(torch.exp(power * found.offset))
    return with_constants(family_parameter, found, torch.exp(power * found.offset), multiplies=True)


def location_parameter(found: ArgumentMap) -> tuple[FamilyParameter, Tensor, Tensor] | str:
    """Slot, index and offset ``b`` with ``argument = m[index] + b``."""
    no_rows = torch.zeros(0)
    if found.table is None:
        zero = torch.zeros(found.offset.shape, dtype=torch.long)
        return (
            FamilyParameter("location", None, "constant", 1.0, torch.zeros(1)),
            zero,
            compact(found.offset),
        )
    family_parameter = FamilyParameter("location", found.table, "identity", 1.0, no_rows)
    free = found.coefficient != 0
    if not bool((found.coefficient[free] == 1.0).all()):
        return "the location multiplies its parameter by a number"
    if bool(free.all()):
        return family_parameter, found.index, compact(found.offset)
    return with_constants(family_parameter, found, found.offset, multiplies=False)


def with_constants(
    family_parameter: FamilyParameter, found: ArgumentMap, offset: Tensor, multiplies: bool
) -> tuple[FamilyParameter, Tensor, Tensor]:
    """Moves the constant entries of a mixed argument into rows of their own."""
    free = found.coefficient != 0
    values, places = torch.unique(offset[~free], return_inverse=True)
    index = found.index.clone()
    # Rows of constants follow the table's; -1 - i stands for the i-th until the table's length
    # is known, and counts from the end once they are appended.
    index[~free] = places - len(values)
    neutral = torch.full_like(offset, 1.0 if multiplies else 0.0)
    full = FamilyParameter(
        family_parameter.kind,
        family_parameter.table,
        family_parameter.link,
        family_parameter.exponent,
        values,
    )
    return full, index, compact(torch.where(free, offset, neutral))


def data_of(data: Callable[[Tensor], tuple[Tensor, Any]]) -> Callable[[Tensor], Tensor]:
    """The values whose mean is a good reference point for a location family."""
    return lambda x: data(x)[0]


def exponential_form(*distributions: type) -> Callable[[Recogniser], Recogniser]:
    """Registers a recogniser for classes of distributions, and for what is derived from them."""

    def register(recogniser: Recogniser) -> Recogniser:
        _RECOGNISERS.update(dict.fromkeys(distributions, recogniser))
        return recogniser

    return register


def recogniser_of(distribution: Any) -> Recogniser | None:
    """The recogniser of the nearest class of a distribution that has one."""
    found = (_RECOGNISERS.get(cls) for cls in type(distribution).__mro__)
    return next((recogniser for recogniser in found if recogniser is not None), None)
