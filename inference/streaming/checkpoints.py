"""Checkpoints of a fit in pieces: all that its next iterations depend on, in one file.

A file holds parameters, the history, and what the scheme of acceleration remembers; no rows of the
data, no statistics (one pass over the data brings them back) and no code. It takes the place of the
one before in one go, so a fit that is killed leaves a whole file behind.
"""

import dataclasses
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ember.inference.iteration.acceleration.alternating import AlternatingState
from ember.inference.iteration.acceleration.anderson import AndersonState
from ember.inference.iteration.acceleration.em_map import State
from ember.inference.iteration.acceleration.lbfgs import LbfgsState
from ember.inference.iteration.acceleration.squarem import SquaremState
from ember.inference.iteration.loop import Place
from ember.inference.iteration.trajectory import Iteration, Movement, Trajectory
from ember.inference.parameters.supports import all_finite
from ember.inference.plan.statistics import Statistics
from ember.inference.storage.encoding import Decoder, Encoder
from ember.inference.storage.sealed_file import (
    CHECKPOINT,
    check_target,
    read_sealed,
    write_sealed,
)

__all__ = ["Checkpoints", "Resumed", "read_checkpoint"]


CLASSES = (State, AlternatingState, AndersonState, LbfgsState, SquaremState, Movement)


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint holds.

    Attributes:
        about: What the fit was of: words and numbers by which another one is told apart.
        way: The record of the fit so far.
        state: That of the scheme of acceleration, without the statistics at the parameters.
        leaps: How often the fit has leapt to a higher place.
        objective: The objective at the parameters reached.
    """

    about: dict[str, Any]
    way: Trajectory
    state: State
    leaps: int
    objective: float

    def place(self, current: Statistics) -> Place:
        """Where the fit goes on, given the statistics at its parameters."""
        return Place(_with_current(self.state, current), self.leaps)


@dataclass
class Checkpoints:
    """Writes a checkpoint every so often.

    Attributes:
        path: The file; None if there is none.
        every: How many seconds lie between two checkpoints at least.
        about: What the fit is of.
    """

    path: Path | None
    every: float
    about: dict[str, Any]
    _latest: float = field(default_factory=lambda: time.perf_counter(), init=False)
    _failed: bool = field(default=False, init=False)

    def __call__(self, way: Trajectory, place: Place) -> None:
        """Writes one if it is time; a file that cannot be written is a warning, not the end."""
        now = time.perf_counter()
        if self.path is None or self._failed or now - self._latest < self.every:
            return
        self._latest = now
        try:
            write_checkpoint(self.path, self.about, way, place)
        except ValueError as error:
            self._failed = True
            warnings.warn(
                f"{error} The fit goes on without checkpoints; the latest one, if there is one, is "
                "as it was.",
                RuntimeWarning,
                stacklevel=2,
            )


def write_checkpoint(path: Path, about: dict[str, Any], way: Trajectory, place: Place) -> None:
    """Writes a checkpoint.

    Raises:
        ValueError: If the file cannot be written.
    """
    encoder = Encoder(CLASSES)
    content = {
        "about": about,
        "params": dict(way.params),
        "history": list(way.history),
        "times": list(way.times),
        "evaluations": way.evaluations,
        "iterations": [tuple(each) for each in way.iterations],
        "state": _with_current(place.state, None),
        "leaps": place.leaps,
        "objective": place.state.current.objective,
    }
    write_sealed(check_target(path), encoder.encode(content, ""), encoder.tensors, CHECKPOINT)


def read_checkpoint(path: str | Path) -> Resumed:
    """What a checkpoint holds.

    Raises:
        ValueError: If there is no such file, or it is of another kind, or damaged.
    """
    content, tensors = read_sealed(path, CHECKPOINT)
    # In memory of their own: products of vectors are summed in an order that alignment decides.
    found = Decoder({n: t.clone() for n, t in tensors.items()}, CLASSES).decode(content)
    params: dict[str, Tensor] = found["params"]
    way = Trajectory(
        params,
        began=time.perf_counter() - (found["times"][-1] if found["times"] else 0.0),
        history=found["history"],
        times=found["times"],
        evaluations=found["evaluations"],
        iterations=[Iteration(*each) for each in found["iterations"]],
    )
    return Resumed(found["about"], way, found["state"], found["leaps"], found["objective"])


def _with_current(state: State, current: Statistics | None) -> State:
    """The state of a scheme, and of those within it, with other statistics."""
    changed: dict[str, Any] = {"current": current}
    if isinstance(state, AlternatingState) and state.inner is not None:
        changed["inner"] = _with_current(state.inner, current)
    return dataclasses.replace(state, **changed)


def same_params(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of parameters have the same sites and shapes, and the other is finite."""
    shapes = [{name: value.shape for name, value in each.items()} for each in (one, other)]
    return shapes[0] == shapes[1] and all_finite(other)
