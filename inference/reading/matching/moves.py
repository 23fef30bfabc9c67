"""Runs of a model with parameters moved, and what the arguments of its sites are then."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.parameters.affine_map import TO_SPACE
from ember.inference.parameters.supports import is_real
from ember.inference.reading.predictors import Predictor
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import unwrap

__all__ = ["Moves", "transformed_argument"]


GOLDEN = 0.618  # its multiples are spread evenly, no two alike
Params = Mapping[str, Tensor]


class Moves:
    """Runs of the model at random parameters, and with entries moved from zero; each is run once.

    Where real parameters are zero (``origin``), the change that an entry makes is not a small
    difference of large numbers. A model that is not defined there is run at random parameters.
    """

    def __init__(
        self, structure: Structure, params: Sequence[Params], traces: Sequence[Trace]
    ) -> None:
        self.structure, self.params, self.traces = structure, params, traces
        self._runs: dict[Hashable, Trace] = {}
        self._reals = {n for n, p in structure.parameters.items() if is_real(p.support)}

    def origin(self, site: str, predictor: Predictor) -> tuple[Params, Trace]:
        """Where entries are moved from, and the run there."""
        zero = {
            n: torch.zeros_like(v) if n in self._reals else v for n, v in self.params[0].items()
        }
        try:
            trace = self._run(("origin",), zero)
            if bool(transformed_argument(trace, site, predictor).isfinite().all()):
                return zero, trace
        except (ValueError, RuntimeError, ArithmeticError):
            pass
        return self.params[0], self.traces[0]

    def whole(self, start: Params, name: str, step: float) -> Trace:
        """The run with all of a parameter moved in its support, by up to a step, unevenly."""
        parameter = self.structure.parameters[name]
        free = parameter.to_unconstrained(start[name])
        uneven = (0.5 + GOLDEN * torch.arange(free.numel()).to(free).reshape(free.shape)) % 1.0
        value = parameter.to_constrained(free + step * uneven).expand(parameter.shape)
        here = start is self.params[0]
        return self._run((name, None, step, here), {**start, name: value})

    def entry(self, start: Params, name: str, step: float, entry: int) -> Trace:
        """The run with an entry one step larger than at the start."""
        value = start[name].clone()
        value.view(-1)[entry] += step
        here = start is self.params[0]
        return self._run((name, entry, step, here), {**start, name: value})

    def scaled(self, by: Mapping[str, float]) -> tuple[list[Params], list[Trace]]:
        """Runs at the random parameters with some of them multiplied."""
        if all(factor == 1.0 for factor in by.values()):
            return list(self.params), list(self.traces)
        params: list[Params] = [
            {n: by.get(n, 1.0) * v for n, v in values.items()} for values in self.params
        ]
        key = tuple(sorted(by.items()))
        return params, [self._run((i, key), values) for i, values in enumerate(params)]

    def _run(self, key: Hashable, params: Params) -> Trace:
        if key not in self._runs:
            self._runs[key] = self.structure.trace(params)
        return self._runs[key]


def transformed_argument(trace: Trace, site: str, predictor: Predictor) -> Tensor:
    """The value of an argument in a run, in the space in which it may be linear."""
    value = predictor.read(unwrap(trace.nodes[site]["fn"]).base).detach().double()
    return TO_SPACE[predictor.space](value)
