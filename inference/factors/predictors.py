r"""A density of lines in coefficients, to second order: one look at the rows.

With the expected log probability :math:`q(\eta)` of a site whose arguments are links of lines
(``parameters/line.py``), which no two events share,

.. math:: \frac{\partial^2 q}{\partial \theta_r\, \partial \theta_s'} =
          \sum_{n:\, r(n) = r,\, s(n) = s} \frac{\partial^2 q}{\partial \eta_n\, \partial \zeta_n}\,
          x_n z_n^\top,

so the Hessian takes as many backward passes as an event has lines, and products of the features,
where automatic differentiation by the coefficients takes one for each of these.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims
from ember.inference.parameters.line import Line, Lines
from ember.inference.reading.site import Site

__all__ = ["NearSite", "Predictors"]


FEWEST = 20_000  # entries: of fewer, many backward passes take no longer
MOST_LINES = 16  # of an event: as many backward passes
MOST_GROUPS = 64  # of entries with the same coefficients: they are taken in turn


@dataclass(frozen=True)
class _Given:
    """An argument that is known."""

    value: Tensor
    domain: str
    sources: tuple[str, ...] = ()
    is_constant: bool = False

    def evaluate(self, params: Mapping[str, Tensor]) -> Tensor:
        """The argument."""
        return self.value


@dataclass(frozen=True, eq=False)
class NearSite:
    """The expected log probability of a site, to second order around some parameters.

    Attributes:
        lines: The lines of each argument.
        value: There.
        point: All coefficients of all lines, ``(Z,)``.
        gradient: By them.
        hessian: By them, ``(Z, Z)``.
        by_line: The first and the second derivative by the values of each line.
    """

    lines: tuple[Lines, ...]
    value: Tensor
    point: Tensor
    gradient: Tensor
    hessian: Tensor
    by_line: tuple[tuple[Tensor, Tensor], ...]

    @property
    def has_edges(self) -> bool:
        """Whether along some line there is a slope and no curvature, as of ``Laplace``."""
        return any(
            bool((slope != 0.0).any() & (curvature == 0.0).all())
            for slope, curvature in self.by_line
        )

    def expected_log_prob(self, params: Mapping[str, Tensor]) -> Tensor:
        """The quadratic function of the coefficients."""
        far = _flat([lines.coefficients(params) for lines in self.lines]) - self.point
        return self.value + self.gradient @ far + 0.5 * far @ self.hessian @ far


class Group(NamedTuple):
    """Entries of which each line has the same row of coefficients.

    Attributes:
        place: Where they stand along the dims by which the rows change.
        columns: Where the coefficients of each line stand among all.
    """

    place: tuple[int, ...]
    columns: tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Predictors:
    """A site whose arguments are links of lines.

    Attributes:
        site: The site.
        lines: The lines of each argument that parameters feed, by its name.
        shape: The shape of the values of all of them together.
        dims: The dims along which rows of coefficients change.
        groups: The groups of entries.
    """

    site: Site
    lines: Mapping[str, Lines]
    shape: torch.Size
    dims: tuple[int, ...]
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, site: Site, params: Mapping[str, Tensor]) -> Self | None:
        """Those of a site; None where an argument is no such link, or events are not apart or few.

        Args:
            site: The site.
            params: Any parameters.
        """
        density = site.density
        if density is None or density.is_constant or site.log_weights is not None:
            return None
        fed = {key: found for key, (_, found) in density.maps.items() if not found.is_constant}
        lines = {key: made for key, found in fed.items() if (made := Lines.of(found)) is not None}
        every = [line for own in lines.values() for line in own.each]
        # The entries of a vector meet in one event, and so would those that a scalar feeds.
        vectors = any(own.is_vector for own in lines.values())
        is_apart = len(lines) == 1 if vectors else not density.base.event_shape
        if len(lines) < len(fed) or not is_apart or len(every) > MOST_LINES:
            return None
        shape = broadcast_shapes(*(line.shape for line in every))
        if max(shape.numel(), site.value.numel()) < FEWEST:
            return None
        padded = [prepend_dims(line.index, len(shape)).shape for line in every]
        dims = tuple(i for i in range(len(shape)) if any(own[i] > 1 for own in padded))
        if math.prod(shape[i] for i in dims) > MOST_GROUPS:
            return None
        widths, begin = [], 0
        for own in lines.values():
            coefficients = own.coefficients(params)
            widths += [(begin, coefficients.shape[-1])] * len(own.each)
            begin += coefficients.numel()
        groups = []
        for place in itertools.product(*(range(shape[i]) for i in dims)):
            rows = [int(_part(line.index, shape, dims, place).flatten()[0]) for line in every]
            begins = [begin + row * width for row, (begin, width) in zip(rows, widths, strict=True)]
            columns = zip(begins, widths, strict=True)
            groups.append(Group(place, tuple(slice(b, b + width) for b, (_, width) in columns)))
        return cls(site, lines, shape, dims, tuple(groups))

    def near(self, params: Mapping[str, Tensor], of: Callable[[Site], Tensor]) -> NearSite:
        """The site to second order.

        Args:
            params: Where.
            of: The expected log probability of a site like this one, with arguments of its own.
        """
        lines = tuple(self.lines.values())
        every = [line for own in lines for line in own.each]
        with torch.no_grad():
            point = _flat([own.coefficients(params) for own in lines])
            values = [line.offset.expand(self.shape).clone() for line in every]
            for group in self.groups:
                for line, value, own in zip(every, values, group.columns, strict=True):
                    part = self._part(value, group)
                    part.add_((self._features(line, group) @ point[own]).reshape(part.shape))
        with torch.enable_grad():
            etas = [value.requires_grad_() for value in values]
            value = of(self._given(etas))
            slopes = _derivatives(value, etas, create_graph=True)
            curvatures = [_derivatives(slope.sum(), etas) for slope in slopes]
        gradient, hessian = torch.zeros_like(point), point.new_zeros(2 * (len(point),))
        for group in self.groups:
            features = [self._features(line, group) for line in every]
            for i, own in enumerate(group.columns):
                gradient[own] += features[i].mT @ self._part(slopes[i].detach(), group).flatten()
                for j, other in enumerate(group.columns[: i + 1]):
                    weights = self._part(curvatures[i][j], group).reshape(-1, 1)
                    block = features[i].mT @ (weights * features[j])
                    hessian[own, other] += block
                    if j < i:
                        hessian[other, own] += block.mT
        by_line = tuple((g.detach(), curvatures[i][i]) for i, g in enumerate(slopes))
        return NearSite(lines, value.detach(), point, gradient, hessian, by_line)

    def _given(self, values: Sequence[Tensor]) -> Site:
        """The site with given values of all lines."""
        density, rest = self.site.density, list(values)
        assert density is not None
        maps = dict(density.maps)
        for key, lines in self.lines.items():
            argument, found = maps[key]
            own = [rest.pop(0) for _ in lines.each]
            maps[key] = argument, _Given(lines.argument(own), found.domain)
        return dataclasses.replace(self.site, density=dataclasses.replace(density, maps=maps))

    def _features(self, line: Line, group: Group) -> Tensor:
        """The features of a line in a group, ``(M, F)``."""
        width = line.features.shape[-1:]
        found = _part(line.features, self.shape + width, self.dims, group.place)
        return found.reshape(-1, *width)

    def _part(self, values: Tensor, group: Group) -> Tensor:
        """The entries of a group."""
        return _part(values, self.shape, self.dims, group.place)


def _part(values: Tensor, shape: torch.Size, dims: Sequence[int], place: Sequence[int]) -> Tensor:
    """What stands at a place along some dims, of values that are expanded to a shape."""
    values = values.expand(shape)
    for dim, i in zip(reversed(dims), reversed(place), strict=True):
        values = values.select(dim, i)
    return values


def _derivatives(value: Tensor, by: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
    """The derivatives of a number, 0 where it does not depend."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in by]
    found = torch.autograd.grad(
        value, by, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return [torch.zeros_like(x) if y is None else y for x, y in zip(by, found, strict=True)]


def _flat(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.reshape(-1) for each in rows])
