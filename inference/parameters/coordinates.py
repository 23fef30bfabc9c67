"""Parameters as one vector of free reals, in which a straight line stays inside every support."""

import functools
import itertools
from collections.abc import Container, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.parameters.parameter import Parameter
from ember.inference.parameters.supports import base_support, is_simplex, off_open_bounds

__all__ = ["Coordinates"]


TINY = float(np.finfo(np.float64).tiny)
UNITLESS = 1e3  # no logarithm is larger
LEAST = {"probability": 36.0, "positive": 230.0}  # logarithms as good as infinite


class Coordinates:
    """Flattens constrained parameters to an unconstrained vector, and back.

    Simplices pass through log-ratios, positive numbers through the logarithm, probabilities
    through the logit, positive-definite matrices through the log-Cholesky factor.

    Args:
        parameters: The parameters, in their order.
        roots: Those non-negative parameters that pass through the square root instead. Where many
            entries end at zero, as in an image, their logarithms would run away for ever; roots
            come to rest.
    """

    def __init__(self, parameters: Mapping[str, Parameter], roots: Container[str] = ()) -> None:
        self._parameters = list(parameters.values())
        self._roots = {name for name in parameters if name in roots}
        self._shapes = [torch.Size(p.transform.inverse_shape(p.shape)) for p in self._parameters]
        each = zip(self._parameters, self._shapes, strict=True)
        bounds = [p.start.new_full((shape.numel(),), self._bound(p)) for p, shape in each]
        self._bounds = torch.cat(bounds) if bounds else torch.empty(0, dtype=torch.float64)

    def _bound(self, parameter: Parameter) -> float:
        """The size from which on a coordinate is at rest; a real one never is."""
        if parameter.name in self._roots:
            return torch.inf
        support = base_support(parameter.support)
        if support in (constraints.simplex, constraints.unit_interval):
            return LEAST["probability"]
        is_positive = support in (constraints.positive, constraints.nonnegative)
        return LEAST["positive"] if is_positive else torch.inf

    def slices(self) -> dict[str, Tensor]:
        """Where the coordinates of each parameter stand in the vector."""
        sizes = [shape.numel() for shape in self._shapes]
        every = torch.arange(sum(sizes), device=self._bounds.device).split(sizes)
        return {p.name: own for p, own in zip(self._parameters, every, strict=True)}

    def __len__(self) -> int:
        """The number of coordinates."""
        return len(self._bounds)

    def __iter__(self) -> Iterator[tuple[Parameter, Tensor]]:
        """Each parameter, and where its coordinates stand in the vector."""
        return zip(self._parameters, self.slices().values(), strict=True)

    def shape_of(self, name: str) -> torch.Size:
        """The shape of the coordinates of one parameter."""
        shapes = zip(self._parameters, self._shapes, strict=True)
        return next(shape for parameter, shape in shapes if parameter.name == name)

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """The unconstrained vector, after any leading dims; infinite on a boundary."""
        free = [self._free(p, params[p.name]) for p in self._parameters]
        if not free:
            return self._bounds.clone()
        each = zip(free, self._shapes, strict=True)
        return torch.cat([x.reshape(*x.shape[: x.dim() - len(s)], -1) for x, s in each], -1)

    def _free(self, parameter: Parameter, value: Tensor) -> Tensor:
        if parameter.name in self._roots:
            return value.sqrt()
        return parameter.to_unconstrained(value)

    def _constrained(self, parameter: Parameter, free: Tensor) -> Tensor:
        if parameter.name in self._roots:
            return free.square()
        return off_open_bounds(parameter.support, parameter.to_constrained(free))

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Constrained parameters, with the leading dims of the vector."""
        pieces = vector.split([shape.numel() for shape in self._shapes], -1)
        lead = vector.shape[:-1]
        return {
            p.name: self._constrained(p, piece.reshape(lead + shape)).expand(lead + p.shape)
            for p, piece, shape in zip(self._parameters, pieces, self._shapes, strict=True)
        }

    def at_rest(self, vector: Tensor) -> Tensor:
        """Which coordinates are on their boundary, or so near that they no longer matter.

        EM sends a probability that the data do not support to zero, and its logarithm for ever
        down; among coordinates that still matter it would dominate every length.
        """
        return ~(vector.abs() < self._bounds)

    def independent(self, vector: Tensor) -> Tensor:
        """Which coordinates are one for each dimension of the parameters, the others held fixed.

        Of a simplex's log-ratios that of its largest entry is left out, so that any other may lead
        to the boundary by itself; and whatever is not ``influential``.
        """
        sizes = [shape.numel() for shape in self._shapes]
        kept, pieces = list[Tensor](), (vector.split(sizes), self.influential.split(sizes))
        for parameter, piece, influence, shape in zip(
            self._parameters, *pieces, self._shapes, strict=True
        ):
            mine = influence.reshape(shape)
            if is_simplex(parameter.support):
                largest = piece.reshape(shape).argmax(-1, keepdim=True)
                mine = torch.ones_like(mine).scatter(-1, largest, False)
            kept.append(mine.reshape(-1))
        return torch.cat(kept) if kept else torch.zeros_like(vector, dtype=torch.bool)

    @functools.cached_property
    def influential(self) -> Tensor:
        """Which coordinates the parameters depend on.

        A transform may leave some unused, as that onto triangular matrices does with what lies
        above the diagonal.
        """
        each = zip(self._parameters, self._shapes, strict=True)
        found = [_has_influence(parameter, shape).reshape(-1) for parameter, shape in each]
        return torch.cat(found) if found else torch.zeros_like(self._bounds, dtype=torch.bool)

    def inside(self, vector: Tensor) -> Tensor:
        """The vector with coordinates beyond their boundary brought back to it."""
        return vector.clamp(-self._bounds, self._bounds)

    def places(self, names: Container[str]) -> Tensor:
        """Which coordinates belong to some of the parameters."""
        marked = torch.zeros_like(self._bounds, dtype=torch.bool)
        for name, places in self.slices().items():
            marked[places] = name in names
        return marked

    def jittered(self, params: Mapping[str, Tensor], by: float = 0.01) -> dict[str, Tensor]:
        """Parameters with a little noise, relative to the size of each coordinate."""
        flat = self.flatten(params)
        noisy = flat + by * flat.abs().clamp_min(by) * torch.randn(
            flat.shape, dtype=flat.dtype, device=flat.device
        )
        return self.unflatten(torch.where(torch.isfinite(flat), noisy, flat))

    def units(self, vector: Tensor, gradient: Tensor) -> Tensor:
        """A number of each coordinate's own size, by which a search may measure it.

        Logarithms and the like have no units. A real number has that of its site's largest; where
        all are zero, a step that changes the objective by one.
        """
        units = []
        sizes = [shape.numel() for shape in self._shapes]
        pieces = zip(self._parameters, vector.split(sizes), gradient.split(sizes), strict=True)
        for parameter, values, slopes in pieces:
            largest = values.abs().amax() if len(values) else values.new_zeros(())
            if base_support(parameter.support) not in (constraints.real, constraints.real_vector):
                largest = (
                    largest.clamp_min(1.0) if bool(largest > UNITLESS) else values.new_ones(())
                )
            step = 1.0 / slopes.abs().amax() if len(values) else values.new_ones(())
            own = largest if bool(largest > 0.0) else step
            units.append(own.nan_to_num(nan=1.0, posinf=1.0).expand(len(values)))
        return torch.cat(units)

    @property
    def has_roots(self) -> bool:
        """Whether some parameters are measured by their square roots."""
        return bool(self._roots)

    @staticmethod
    def distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
        """The largest relative change of an entry, entries near zero measured by their site's."""
        names = [name for name, value in left.items() if value.numel()]
        if not names:
            return 0.0
        # By numpy, which is quicker with few numbers: this is asked in each iteration.
        one, other = (
            np.concatenate([params[name].detach().cpu().numpy().reshape(-1) for name in names])
            for params in (left, right)
        )
        lengths = [left[name].numel() for name in names]
        begins = list(itertools.accumulate(lengths[:-1], initial=0))
        size = np.maximum(np.abs(one), np.abs(other))
        least = np.repeat(0.01 * np.maximum.reduceat(size, begins) + TINY, lengths)
        with np.errstate(invalid="ignore"):
            moved = np.abs(other - one) / (size + least)
        return float(np.fmax.reduce(moved, initial=0.0))


def _has_influence(parameter: Parameter, shape: torch.Size) -> Tensor:
    """Which free reals the value of a parameter depends on, at a point where nothing is special."""
    with torch.enable_grad():
        free = 0.1 * torch.arange(1.0, 1.0 + shape.numel(), dtype=torch.float64).sin()
        free = free.reshape(shape).requires_grad_()
        value = parameter.to_constrained(free)
        weights = torch.arange(1.0, 1.0 + value.numel(), dtype=torch.float64).cos()
        (influence,) = torch.autograd.grad((value.reshape(-1) * weights).sum(), free)
    return influence != 0.0
