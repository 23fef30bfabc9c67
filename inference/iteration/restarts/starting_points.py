"""Where the starts of a fit begin: the wish of the user first, then others of several kinds."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ember.inference.initialisation.starting_params import (
    Init,
    has_states,
    start_kinds,
    starting_params,
)
from ember.inference.iteration.annealing import annealed
from ember.inference.maximisation.degeneracy import Degenerate
from ember.inference.plan.plan import Plan
from ember.inference.reading.model_errors import unevaluated

__all__ = ["GIVEN", "Start", "starting_points"]


GIVEN = "given"  # the kind of a start of the user's own


@dataclass(frozen=True)
class Start:
    """Parameters to start from, and how they were made."""

    kind: str
    params: dict[str, Tensor]


def starting_points(plan: Plan, init: Init, count: int, schedule: Sequence[float]) -> list[Start]:
    """The chosen start, then others; those that degenerate or fail at once drop.

    Args:
        plan: The plan of the model.
        init: The user's wish.
        count: The number of starts.
        schedule: Inverse temperatures of the steps of annealing that each takes first.

    Raises:
        ValueError: If no start is possible.
    """
    starts: list[Start] = []
    failures: list[str] = []
    for wish in start_kinds(init, count, bool(plan.chains)):
        kind = wish if isinstance(wish, str) else GIVEN
        try:
            # Starts of one kind should differ, and all kinds are one where states do not.
            varied = any(start.kind == kind or not has_states(plan) for start in starts)
            params = starting_params(plan, wish, varied)
            starts.append(Start(kind, annealed(plan, params, schedule)))
        except Degenerate as error:
            failures.append(str(error))
        except (RuntimeError, ArithmeticError) as error:
            if callable(wish):  # it may be at fault itself
                raise
            failures.append(unevaluated(plan.structure.model, error))
    if not starts:
        raise ValueError(f"no start is possible: {failures[0]}")
    return starts
