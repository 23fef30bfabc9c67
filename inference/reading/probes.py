"""A few runs of a model at random parameters, from which its sites are read."""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ember.inference.reading.checks.enumeration import check_each_value
from ember.inference.reading.checks.repeatability import check_repeatable
from ember.inference.reading.gaussian.slices import few_rows
from ember.inference.reading.hidden_parameters import Gradients
from ember.inference.reading.matching.arguments import (
    PROBES,
    probe_values,
)
from ember.inference.reading.matching.moves import Moves
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace

__all__ = ["Probes", "probe"]


@dataclass(frozen=True)
class Probes:
    """Runs of the model at random valid parameters; empty if the model refused them."""

    params: list[dict[str, Tensor]]
    traces: list[Trace]
    refusal: str = ""
    moves: Moves | None = None
    gradients: Gradients | None = None


def probe(structure: Structure, start: Trace) -> Probes:
    """Runs the model at a few random valid parameter values.

    Args:
        structure: The model.
        start: A run at its default parameters.

    Raises:
        ValueError: If sites or shapes change with the parameters, or with nothing at all, or
            values of a latent are not where Pyro enumerates them.
    """
    params = [probe_values(structure, seed) for seed in range(PROBES)]
    traces: list[Trace] = []
    for values in params:
        try:
            traces.append(structure.trace(values))
        except (ValueError, RuntimeError, ArithmeticError, IndexError) as error:
            if "structure depends on parameter values" in str(error):
                free = dataclasses.replace(structure, signature=())
                check_repeatable(free.trace(values), free.trace(values))
                raise
            check_repeatable(start, structure.trace(structure.start))
            return Probes([], [], f"the model fails at random parameters ({error})")
    few, first = few_rows(structure), traces[0]
    if few is not structure:
        check_repeatable(start, structure.trace(structure.start))
        first = few.trace(params[0])
    gradients = Gradients(structure, few)
    _check_repeatable(few, params[0], first, gradients.trace)
    check_each_value(few, params[0], first)
    return Probes(params, traces, moves=Moves(structure, params, traces), gradients=gradients)


def _check_repeatable(
    structure: Structure, params: Mapping[str, Tensor], first: Trace, second: Trace | None
) -> None:
    """Refuses a model of which another run says something else.

    At random parameters, as at the start noise may be multiplied by zero.

    Args:
        structure: The model.
        params: Of the first run.
        first: The run.
        second: One that has recorded its graph, which may compute in another way; or None.
    """
    if second is not None:
        with contextlib.suppress(ValueError):
            check_repeatable(first, second)
            return
    check_repeatable(first, structure.trace(params))
