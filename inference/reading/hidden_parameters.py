r"""Parameters that an argument depends on, but that its values do not show.

Maps are read off values. In ``a + b * x`` with ``x`` of :math:`5 \cdot 10^9` a small ``a`` is lost
in the rounding of ``b * x``, and a map without it agrees with every run. The gradient keeps them
apart: each entry of a parameter has a number of its own there, however small it is beside the
others. So the derivatives of a sum of the argument's entries, unevenly weighted, are compared with
those of the map. What the model cuts off from the gradient is not judged here, but told apart
(``reached``).
"""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.families.discrete import COUNTED
from ember.inference.numerics.draws import Draws
from ember.inference.numerics.shapes import broadcast_shapes, unexpanded
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.scaled_matrix import ScaledMatrix
from ember.inference.parameters.supports import is_real
from ember.inference.reading.graphs import leaves_of
from ember.inference.reading.matching.arguments import free_probe
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace, TraceNode
from ember.inference.reading.unwrapping import MATRICES, given_arguments, unwrap

__all__ = ["Gradients"]


TOLERANCE = 1e-6  # relative; what is hidden differs in whole
ROUNDING = 1e-12  # of a shift of all logits, in which the normaliser leaves its rounding
LEAST = -30.0  # in free numbers: a positive parameter of 1e-13
ALTERNATIVES = {"probs": ("probs", "logits"), "matrix": MATRICES}
Params = Mapping[str, Tensor]
Map = ArgumentMap | AffineMap | ScaledMatrix


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run of the model at parameters made from free numbers, with its graph."""

    free: dict[str, Tensor]
    params: dict[str, Tensor]
    trace: Trace

    @property
    def nodes(self) -> Mapping[str, TraceNode]:
        return self.trace.nodes


class Gradients:
    """Runs of the model with the graphs of its arguments: at a random point, and at two others.

    Where all parameters are next to nothing, nothing overflows, and no probability is so near one
    that its slope is lost. But a product of two has no slope there either.

    Args:
        structure: The model.
        few: The model on a few rows, enough for maps that are the same in all of them.
    """

    def __init__(self, structure: Structure, few: Structure) -> None:
        self.structure, self.few = structure, few
        parameters, free = structure.parameters, free_probe(structure, 0)
        real = {n: torch.zeros_like(v) for n, v in free.items() if is_real(parameters[n].support)}
        least = {n: torch.full_like(v, LEAST) for n, v in free.items()}
        self.points = (free, {**free, **real}, {**least, **real})
        self._done: dict[tuple[int, bool], _Run | None] = {}

    @property
    def trace(self) -> Trace | None:
        """A run on a few rows at the first of the random parameters; None if there is none."""
        run = self._run(0, few=True)
        return None if run is None else run.trace

    def reached(self, sites: Iterable[str]) -> dict[str, frozenset[str]] | None:
        """The parameters in the graph of each site's arguments; None if there is no run."""
        run = self._run(0, few=True)
        if run is None:
            return None
        return {site: frozenset(_reached(run, site)) for site in sites}

    def hides(self, site: str, argument: str, by: str, argument_map: Map) -> bool:
        """Whether an argument depends on the parameters in other ways than its map says.

        Args:
            site: The site.
            argument: The name of the argument that was read.
            by: The name by which the map gives it.
            argument_map: The map.
        """
        run = self._run(0, few=True)
        few = run is not None and _fits(argument_map, run, site, by)
        run = run if few else self._run(0, few)
        if run is None or not run.free:
            return False
        reached = _reached(run, site, argument)
        if reached <= set(argument_map.sources) and _is_plain(argument_map):
            return False
        runs = (self._run(i, few) for i in range(len(self.points)))
        return any(
            _differs(each, _functions(each, site, argument, by, argument_map))
            for each in runs
            if each is not None
        )

    def _run(self, i: int, few: bool) -> _Run | None:
        key = i, few and self.few is not self.structure
        if key not in self._done:
            self._done[key] = _made(self.few if few else self.structure, self.points[i])
        return self._done[key]


def _made(structure: Structure, point: Params) -> _Run | None:
    """A run; None if the model has none here, or none that has a gradient."""
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own complaints of float(parameter)
        free = {name: value.clone().requires_grad_() for name, value in point.items()}
        params = {
            name: parameter.to_constrained(free[name]).expand(parameter.shape)
            for name, parameter in structure.parameters.items()
        }
        try:
            return _Run(free, params, structure.trace(params))
        except (RuntimeError, ArithmeticError, ValueError, IndexError):
            return None


def _fits(argument_map: Map, run: _Run, site: str, by: str) -> bool:
    """Whether a map says what an argument is in the rows of a run."""
    shape = getattr(unwrap(run.nodes[site]["fn"]).base, by).shape
    try:
        with torch.no_grad():
            return bool(broadcast_shapes(argument_map.evaluate(run.params).shape, shape) == shape)
    except RuntimeError:
        return False


def _reached(run: _Run, site: str, argument: str = "") -> set[str]:
    """The parameters in the graph of an argument, whatever it was given as; of all if of none."""
    node = run.nodes[site]
    given = given_arguments(unwrap(node["fn"]).base)
    names = ALTERNATIVES.get(argument, (argument,)) if argument else given
    tensors = [value for name, (_, value) in given.items() if name in names]
    if not argument and "_matrix" in node["infer"]:
        tensors.append(node["infer"]["_matrix"])
    leaves = leaves_of(*tensors)
    return {name for name, value in run.free.items() if id(value) in leaves}


def _is_plain(argument_map: Map) -> bool:
    """Whether a map gathers the entries of one parameter, not enlarged: the common case.

    What its values do not show is then small beside the parameter.
    """
    if argument_map.is_constant:
        return True
    if not isinstance(argument_map, ArgumentMap) or len(argument_map.sources) > 1:
        return False
    enlarged = bool((argument_map.coefficient.abs() > 1.0).any())
    return not enlarged and not bool(argument_map.offset.any())


def _functions(
    run: _Run, site: str, argument: str, by: str, argument_map: Map
) -> Iterator[tuple[Tensor, Tensor | None, float]]:
    """The argument as the model and as the map have it, and the rounding of a slope.

    A probability near one, or a positive number of unlike rows, is looked at in two ways.
    """
    base = unwrap(run.nodes[site]["fn"]).base
    has_logits = "logits" in base.__dict__ and argument == "probs"
    with torch.enable_grad():
        if argument_map.is_constant:
            actual = getattr(base, "logits" if has_logits else by)
            yield actual, None, ROUNDING if isinstance(base, COUNTED) else 0.0
            return
        mapped = argument_map.evaluate(run.params)
        if isinstance(base, COUNTED):
            if by == "logits":
                yield _centred(base.logits), _centred(mapped), ROUNDING
            else:
                yield base.probs, mapped, ROUNDING
            return
        actual = getattr(base, by)
        yield actual, mapped, 0.0
        is_logit = not isinstance(argument_map, ScaledMatrix) and argument_map.space == "logit"
        if has_logits and by == "probs" and is_logit:
            assert not isinstance(argument_map, ScaledMatrix)
            raw = dataclasses.replace(argument_map, space="raw")
            yield vars(base)["logits"], raw.evaluate(run.params), 0.0
        if argument_map.domain == "positive":
            yield actual.log(), mapped.log(), 0.0


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def _differs(run: _Run, functions: Iterator[tuple[Tensor, Tensor | None, float]]) -> bool:
    for actual, mapped, rounding in functions:
        if not actual.requires_grad:
            continue
        actual = unexpanded(actual)
        if mapped is not None:
            actual, mapped = torch.broadcast_tensors(actual, mapped)
        weights = Draws(0).uniform(actual.shape) + 0.5
        slopes = _slopes((weights * actual).sum(), run.free)
        if mapped is None:
            slopes_of_map: Sequence[Tensor | None] = [None] * len(slopes)
        else:
            slopes_of_map = _slopes((weights * mapped).sum(), run.free)
        least = rounding * float(weights.sum())
        for one, other in zip(slopes, slopes_of_map, strict=True):
            if one is not None and not _agree(one, other, least):
                return True
    return False


def _slopes(total: Tensor, free: Params) -> Sequence[Tensor | None]:
    if not total.requires_grad:
        return [None] * len(free)
    return torch.autograd.grad(total, list(free.values()), allow_unused=True, retain_graph=True)


def _agree(one: Tensor, other: Tensor | None, least: float) -> bool:
    """Whether slopes are the same, those left aside that overflow or that the model has not."""
    other = torch.zeros(()) if other is None else other
    error = (one - other).abs()
    slack = TOLERANCE * torch.maximum(one.abs(), other.abs()) + least
    return bool(((error <= slack) | (one == 0.0) | ~error.isfinite()).all())
