"""What is left of a plan whose data are elsewhere: enough to read its model for other data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor

from ember.inference.inputs.arguments import Arguments, Model
from ember.inference.plan.plan import Plan
from ember.inference.reading.structure import Structure

__all__ = [
    "IN_PIECES",
    "NO_DATA",
    "LeftOut",
    "PlanRecord",
    "PlanWithoutData",
    "StructureWithoutData",
    "holds_left_out",
]


NO_DATA = (
    "the fit was saved without its data, which this needs; give new data, or load it with the old: "
    "Fit.load(path, model, ...) takes the model's arguments."
)
IN_PIECES = (
    "the data of this fit came in pieces and are not part of it, and this needs them; give the "
    "rows that are meant, such as fit.predict(x)."
)


@dataclass(frozen=True)
class LeftOut:
    """Stands for an argument of the model that was not saved.

    Attributes:
        rows: How many rows it has; -1 if it has none.
    """

    rows: int


@dataclass(frozen=True, eq=False)
class PlanRecord:
    """How a plan was read from its model, and what is said of a fit by its plan alone.

    Attributes:
        objective: "map" or "mle".
        unconstrained: Whether the mode is taken in Pyro's unconstrained coordinates.
        wishes: The roles of continuous sites; see ``Structure.wishes``.
        misread: Sites to be asked of the model at each step.
        signature: For each site its name, type, family, shape and plates.
        rows: The number of rows of the data.
        n_parameters: The number of free parameters.
        n_observations: The number of observations.
        nodes: How many nodes each latent on nodes has, in words.
        deterministic: The values of ``pyro.deterministic`` statements at the estimates.
        units: How many nodes each latent of units has, in words.
    """

    objective: str
    unconstrained: bool
    wishes: Mapping[str, object]
    misread: tuple[str, ...]
    signature: tuple[tuple[Any, ...], ...]
    rows: int
    n_parameters: int
    n_observations: float
    nodes: Mapping[str, str]
    deterministic: Mapping[str, Tensor]
    units: Mapping[str, str] = field(default_factory=dict)


def holds_left_out(value: object) -> bool:
    """Whether arguments are missing from some, containers opened."""
    if isinstance(value, Mapping):
        return any(map(holds_left_out, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_left_out, value))
    return isinstance(value, LeftOut)


class StructureWithoutData(Structure):
    """The part of ``PlanWithoutData`` that knows the model and the arguments that were kept."""

    model: Model
    arguments: Arguments
    record: PlanRecord

    def __init__(
        self, model: Model, arguments: Arguments, record: PlanRecord, why: str = NO_DATA
    ) -> None:
        nodes = {name: _Shown(text) for name, text in record.nodes.items()}
        known = {"model": model, "arguments": arguments, "record": record, "nodes": nodes}
        self.__dict__.update(known, _why=why)

    @property
    def wishes(self) -> dict[str, object]:
        return dict(self.record.wishes)

    def __getattr__(self, name: str) -> Any:
        _refuse(name, self.__dict__.get("_why", NO_DATA))


class PlanWithoutData(Plan):
    """A plan of which all that hangs on the data is missing, and says so when it is asked for.

    Args:
        model: The model.
        arguments: Its arguments, data left out.
        record: What is kept of the plan.
        why: What is said when more is asked for.
        example: A plan for a few rows, by which new ones are drawn; None if there is none.
        passes: The data where they are, for what takes further passes over them; None if that is
            not known. It stays behind when the plan is pickled, as the data do.
    """

    record: PlanRecord
    example: Plan | None
    passes: Any

    def __init__(
        self,
        model: Model,
        arguments: Arguments,
        record: PlanRecord,
        why: str = NO_DATA,
        example: Plan | None = None,
        passes: Any = None,
    ) -> None:
        structure = StructureWithoutData(model, arguments, record, why)
        self.__dict__.update(structure=structure, record=record, _made={}, _why=why)
        self.__dict__.update(example=example, passes=passes)
        self.__dict__.update(row="rows", sizes={"rows": record.rows}, objective=record.objective)
        self.__dict__.update(opaque=_Misread(frozenset(record.misread)))

    def __getattr__(self, name: str) -> Any:
        _refuse(name, self.__dict__.get("_why", NO_DATA))

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "passes": None}


@dataclass(frozen=True)
class _Shown:
    """The nodes of a latent, as a report shows them."""

    shown: str


@dataclass(frozen=True)
class _Misread:
    """The sites that maps do not describe."""

    misread: frozenset[str]


def _refuse(name: str, why: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ValueError(why)
