"""A site in exponential-family form: which parameters its family has, and where it reads them."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.families.family import Family
from ember.inference.families.kinds import LOCATION, RATE, Kind
from ember.inference.families.links import IDENTITY, Exponential, Link, MatrixLink, Power
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import compact, prepend_dims
from ember.inference.parameters.affine_map import ParameterEntries
from ember.inference.parameters.argument_map import ArgumentMap, ParameterRows
from ember.inference.parameters.batching import Shapes, batched_rows
from ember.inference.parameters.computed_rows import ComputedRows

__all__ = [
    "ExponentialForm",
    "FamilyParameter",
    "Maps",
    "Names",
    "Recogniser",
    "exponential_form",
    "location_parameter",
    "rate_parameter",
    "recogniser_of",
    "with_constants",
]


@dataclass(frozen=True)
class FamilyParameter:
    """Where a parameter of a family gets its values: rows of a table, then known constants.

    Attributes:
        kind: The kind of parameter.
        table: The entries of the model's parameters; None if all values are known.
        link: How a row of the table becomes a value.
        constants: Known values, after those of the rows; without a table, what is linked.
    """

    kind: Kind
    table: ParameterRows | ParameterEntries | ComputedRows | None
    link: Link = IDENTITY
    constants: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def sources(self) -> tuple[str, ...]:
        return () if self.table is None else self.table.sources

    @property
    def digest(self) -> str:
        """Equal for family parameters that read the same values, in every process."""
        where = (self.kind, self.table, self.link, tuple(self.constants.shape))
        digest = hashlib.sha1(repr(where).encode(), usedforsecurity=False)
        digest.update(self.constants.detach().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def values(self, params: Mapping[str, Tensor]) -> Tensor:
        """Every value the family parameter can take at ``params``, shape ``(R, *event)``."""
        if self.table is None:
            return self._known
        rows = self.link.forward(self.table.rows(params))
        return torch.cat([rows, self.constants]) if self.constants.shape[0] else rows

    @functools.cached_property
    def _known(self) -> Tensor:
        return self.link.forward(self.constants)

    def batched(self, shapes: Shapes, count: int) -> "FamilyParameter":
        """The same for several values of every parameter of the model."""
        if self.table is None:
            return self
        return dataclasses.replace(self, table=self.table.batched(shapes, count))

    def batched_index(self, index: Tensor, shapes: Shapes, count: int) -> Tensor:
        """The rows that an index points to, for each of several values."""
        if self.table is None:
            return batched_rows(index, (), count)
        return self.table.batched_index(index, shapes, count)

    def roots(self, params: Mapping[str, Tensor]) -> Tensor:
        """Of a matrix: the Cholesky factors of what the model declares, ``(R, D, D)``."""
        return self._known_roots if self.table is None else self._rooted(self.table.rows(params))

    @functools.cached_property
    def _known_roots(self) -> Tensor:
        return self._rooted(self.constants)

    def _rooted(self, rows: Tensor) -> Tensor:
        assert isinstance(self.link, MatrixLink)
        return self.link.root(rows)


@dataclass(frozen=True)
class ExponentialForm:
    """A site in exponential-family form.

    ``indices`` holds, for each family parameter, the row of its table (batch-shaped);
    ``statistics(value, reference)`` gives ``T`` of shape ``(*batch, P)`` and the base measure
    ``h``, or None where it is zero. The reference is what the data are measured from: the mean of
    what ``centred`` gives, or in a regression the frame of the features, responses and weights
    that ``design`` gives. A form pickles if these functions do. ``latent_features`` are the places
    of features that are latent: ``statistics`` takes them as a third argument, and without it at
    zero.
    """

    family: Family
    parameters: tuple[FamilyParameter, ...]
    indices: tuple[Tensor, ...]
    statistics: Callable[..., tuple[Tensor, Tensor | None]]
    event_dim: int = 0
    centred: Callable[[Tensor], Tensor] | None = None
    design: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    latent_features: tuple[int, ...] = ()

    @property
    def is_computed(self) -> bool:
        """Whether arguments are computed at each node of a latent."""
        return any(isinstance(parameter.table, ComputedRows) for parameter in self.parameters)

    def batched(self, shapes: Shapes, rank: int, count: int) -> "ExponentialForm":
        """The form for several values of every parameter, its batch dims ``rank`` and one more."""
        each = zip(self.indices, self.parameters, strict=True)
        indices = (p.batched_index(prepend_dims(i, rank), shapes, count) for i, p in each)
        return dataclasses.replace(self, indices=tuple(indices))


Maps = Mapping[str, ArgumentMap]
Names = Mapping[str, str]
Recogniser = Callable[[Distribution, Maps, Names], ExponentialForm | str]
"""From a distribution, the maps of its arguments, and their names: its form, or why it has none."""

_RECOGNISERS: dict[type, Recogniser] = {}


def rate_parameter(
    found: ArgumentMap, power: float
) -> tuple[FamilyParameter, Tensor, Tensor] | str:
    """Parameter, index and coefficient ``c`` with ``argument ** power = c * r[index]``."""
    if found.table is None:
        values, index = torch.unique(found.offset**power, return_inverse=True)
        return FamilyParameter(RATE, None, constants=values), index, torch.ones(())
    free = found.coefficient != 0
    exponents = torch.unique(found.coefficient[free])
    if len(exponents) != 1:
        return "the argument raises its parameter to different powers"
    exponent = power * float(exponents[0])
    link = Power(exponent) if found.table.on == "log" else Exponential(exponent)
    parameter = FamilyParameter(RATE, found.table.untransformed, link)
    if bool(free.all()):
        return parameter, found.index, compact(torch.exp(power * found.offset))
    return with_constants(parameter, found, torch.exp(power * found.offset), multiplies=True)


def location_parameter(found: ArgumentMap) -> tuple[FamilyParameter, Tensor, Tensor] | str:
    """Parameter, index and offset ``b`` with ``argument = m[index] + b``."""
    if found.table is None:
        zero = torch.zeros(found.offset.shape, dtype=torch.long)
        known = FamilyParameter(LOCATION, None, constants=torch.zeros(1))
        return known, zero, compact(found.offset)
    parameter = FamilyParameter(LOCATION, found.table)
    free = found.coefficient != 0
    if not bool((found.coefficient[free] == 1.0).all()):
        return "the location multiplies its parameter by a number"
    if bool(free.all()):
        return parameter, found.index, compact(found.offset)
    return with_constants(parameter, found, found.offset, multiplies=False)


def with_constants(
    parameter: FamilyParameter, found: ArgumentMap, offset: Tensor, multiplies: bool
) -> tuple[FamilyParameter, Tensor, Tensor]:
    """Moves the constant entries of a mixed argument into rows of their own."""
    free = found.coefficient != 0
    values, places = torch.unique(offset[~free], return_inverse=True)
    index = found.index.clone()
    # Rows of constants follow the table's; -1 - i stands for the i-th until the table's length
    # is known, and counts from the end once they are appended.
    index[~free] = places - len(values)
    neutral = torch.full_like(offset, 1.0 if multiplies else 0.0)
    full = dataclasses.replace(parameter, constants=values)
    return full, index, compact(torch.where(free, offset, neutral))


def exponential_form(*distributions: type) -> Callable[[Recogniser], Recogniser]:
    """Registers a recogniser for classes of distributions, and for what is derived from them."""

    def register(recogniser: Recogniser) -> Recogniser:
        _RECOGNISERS.update(dict.fromkeys(distributions, recogniser))
        return recogniser

    return register


def recogniser_of(distribution: Distribution) -> Recogniser | None:
    """The recogniser of the nearest class of a distribution that has one."""
    found = (_RECOGNISERS.get(cls) for cls in type(distribution).__mro__)
    return next((recogniser for recogniser in found if recogniser is not None), None)
