r"""Members of a Gaussian component whose precision is known but for a factor.

The residual of an event is :math:`w = v + S z`, with a sparse :math:`S` that has a column for each
slot, and its log density is :math:`a \log r + h - r\,\tfrac12 w^\top Q w`. So the event adds
:math:`r\,S^\top Q S` to the precision of the entries that it reads, on the pattern of that matrix
alone: the inverse of a pedigree's relationship matrix has an entry for each parent and child and
for each two parents of a child, and stays as sparse as that.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from ember.inference.factors.exponential import at_cells
from ember.inference.factors.factor import Scale
from ember.inference.factors.gaussian.arranging import arranged, over_batch
from ember.inference.factors.gaussian.member import Pieces
from ember.inference.factors.gaussian.quadratic import statistics_at
from ember.inference.factors.tied import SiteCells, TieKey
from ember.inference.families.scaled_normal import ScaledStatistics
from ember.inference.numerics.observed_density import row_patterns
from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims
from ember.inference.reading.gaussian.reads import NotIntegrable
from ember.inference.reading.site import Site

__all__ = ["ScaledFactor", "compile_scaled", "is_scaled"]


NOTHING = 1e-12  # of a precision, relative to the two diagonal entries


@dataclass(frozen=True, eq=False)
class ScaledFactor:
    """The events of a site whose log density is ``a log r + h - r w'Qw / 2``.

    Attributes:
        names: The site.
        key: What it is tied to.
        symbols: The dims of discrete latents on which its cells depend, with their sizes.
        cells: The cell of every event at each value of those latents, ``(D, U)``.
        statistics: ``a``, ``v'Qv / 2`` and ``h`` of every event, ``(U, 3)``.
        rows: The row of the component's plates in which each event lies, ``(U,)``.
        linear_entries: The entries, counted over the component, that have a linear term, ``(L,)``.
        linear_values: ``S'Qv``, ``(L,)``.
        linear_events: Of which event each is, ``(L,)``.
        pairs: The pairs of entries that meet, ``(K,)`` each.
        pair_values: ``S'QS``, ``(K,)``.
        pair_events: Of which event each is, ``(K,)``.
    """

    names: tuple[str, ...]
    key: TieKey
    symbols: tuple[tuple[str, int], ...]
    cells: Tensor
    statistics: Tensor
    rows: Tensor
    linear_entries: Tensor
    linear_values: Tensor
    linear_events: Tensor
    pairs: tuple[Tensor, Tensor]
    pair_values: Tensor
    pair_events: Tensor

    def pieces(self, eta: Tensor, stretched: Tensor | None = None) -> Pieces:
        """The log density of every event, its terms in their places.

        Args:
            eta: ``(log r, -r)`` of the cells, ``(..., C, 2)``.
            stretched: That of an expansion, if it is to be told apart.
        """
        gathered = at_cells(eta, self.cells)
        rate = -gathered[..., 1]
        constant = (gathered * self.statistics[:, :2]).sum(-1) + self.statistics[:, 2]
        if rate.shape[-1] > 1:
            of_linear = rate.index_select(-1, self.linear_events)
            of_pairs = rate.index_select(-1, self.pair_events)
        else:
            of_linear = of_pairs = rate
        return Pieces(constant, -of_linear * self.linear_values, of_pairs * self.pair_values)


def is_scaled(site: Site) -> bool:
    """Whether the matrix of a site is known but for a factor."""
    return site.form is not None and isinstance(site.form.statistics, ScaledStatistics)


def compile_scaled(
    site: Site,
    cells: SiteCells,
    scale: Scale | None,
    discrete: Mapping[str, int],
    first: Mapping[str, int],
    row_numbers: Tensor,
) -> ScaledFactor:
    """Lays out the events of a site.

    Args:
        site: The site.
        cells: Its cells.
        scale: The weight of each event relative to its row's.
        discrete: The sizes of the dims of discrete latents.
        first: For each latent of the component the number of its first entry.
        row_numbers: The component's row of every event, at full rank.
    """
    assert site.form is not None
    form = site.form.statistics
    assert isinstance(form, ScaledStatistics)
    rank, outer = len(site.layout.outer) + site.layout.inner, site.layout.outer
    ahead = [i for i, symbol in enumerate(outer) if symbol in discrete]
    statistics = statistics_at(site, cells, ())
    weight = form.factor if site.mask is None else form.factor * site.mask
    weight = prepend_dims(weight, rank)
    if scale is not None:
        size = over_batch(scale, outer, rank)
        statistics, weight = statistics * size.unsqueeze(-1), weight * size
    residual = prepend_dims(site.value - form.location, rank + 1)
    roots = prepend_dims(form.root, rank + 2)
    numbers = torch.arange(roots.shape[:rank].numel()).reshape(roots.shape[:rank])
    entries = torch.stack(
        torch.broadcast_tensors(
            *(first[slot.latent] + prepend_dims(slot.entries, rank) for slot in site.slots)
        ), -1,
    )  # fmt: skip
    coefficients = [prepend_dims(slot.coefficient, rank + 1) for slot in site.slots]
    batches = [each.shape[:rank] for each in (statistics, residual, roots, entries, *coefficients)]
    known = broadcast_shapes(*batches, weight.shape)
    index = prepend_dims(cells.index, rank)
    full = broadcast_shapes(known, index.shape, row_numbers.shape)
    if any(known[i] > 1 for i in ahead):
        raise NotIntegrable(
            f"site '{site.name}' reads the latent '{site.slots[-1].latent}', which is to be "
            "integrated as a Gaussian, but more of it than its variance depends on a discrete "
            "latent; estimate the Gaussian one as a parameter with "
            f"integrate={{'{site.slots[-1].latent}': None}}."
        )

    def flat(tensor: Tensor, tail: int = 0) -> Tensor:
        return arranged(tensor, full, ahead, tail)[0]

    events = _Events(flat(residual, 1), flat(weight), flat(entries, 1))
    for own, root, shown, design in _kinds(events, flat(numbers), roots, coefficients, flat):
        part = ScaledStatistics(
            residual.new_zeros(()), weight.new_ones(()), root, form.is_precision
        )
        precision = part.precisions if bool(shown.all()) else _of_shown(part, shown)
        events.add(own, _sparse(precision), design[shown.cpu().numpy()], shown)
    states = [full[i] for i in ahead]
    by_state = arranged(
        index.expand([full[i] if i in ahead else -1 for i in range(rank)]), full, ahead, 0
    )
    linear, pairs = events.linear(), events.pairs()
    return ScaledFactor(
        (site.name,), cells.key,
        tuple((outer[i], size) for i, size in zip(ahead, states, strict=True)),
        by_state, flat(statistics, 1), flat(row_numbers),
        linear[0], linear[1], linear[2], (pairs[0], pairs[1]), pairs[2], pairs[3],
    )  # fmt: skip


def _kinds(
    events: "_Events",
    matrices: Tensor,
    roots: Tensor,
    coefficients: Sequence[Tensor],
    flat: Callable[..., Tensor],
) -> Iterator[tuple[Tensor, Tensor, Tensor, scipy.sparse.csr_array]]:
    """Events of one matrix, one pattern of gaps and one ``S``: their numbers, and these three."""
    count = len(events.residual)
    patterns, pattern = row_patterns(events.residual.isnan())
    apart = any(each.shape[:-1].numel() > 1 for each in coefficients)
    design = torch.arange(count) if apart else torch.zeros(count, dtype=torch.long)
    keys = torch.stack([matrices, pattern, design], 1)
    kinds, place = torch.unique(keys, dim=0, return_inverse=True)
    wide = [flat(each, 1) for each in coefficients] if apart else None
    flat_roots = roots.reshape(-1, *roots.shape[-2:])
    for kind, (matrix, hidden, row) in enumerate(kinds.tolist()):
        columns = [c.reshape(-1) for c in coefficients] if wide is None else [c[row] for c in wide]
        own = (place == kind).nonzero().squeeze(-1)
        yield own, flat_roots[matrix], ~patterns[hidden], _columns(columns)


def _columns(columns: Sequence[Tensor]) -> scipy.sparse.csr_array:
    """Vectors as the columns of a sparse matrix."""
    places = [column.nonzero().squeeze(-1) for column in columns]
    of = torch.repeat_interleave(
        torch.arange(len(columns)), torch.tensor([len(place) for place in places])
    )
    values = torch.cat([column[place] for column, place in zip(columns, places, strict=True)])
    shape = (len(columns[0]), len(columns))
    where = (torch.cat(places).cpu().numpy(), of.cpu().numpy())
    return scipy.sparse.csr_array((values.cpu().numpy(), where), shape=shape)


def _of_shown(part: ScaledStatistics, shown: Tensor) -> Tensor:
    """The precision of the entries that are there, the others integrated out."""
    places = shown.nonzero().squeeze(-1)
    location = part.root.new_zeros(len(shown))
    whole = dataclasses.replace(part, location=location)
    return whole.of_shown(places).precisions


def _sparse(precision: Tensor) -> scipy.sparse.csr_array:
    """A precision without the entries that are there by rounding alone."""
    size = precision.diagonal().sqrt()
    kept = precision.abs() > NOTHING * size.unsqueeze(-1) * size
    return scipy.sparse.csr_array(torch.where(kept, precision, 0.0).cpu().numpy())


class _Events:
    """The terms of a site's events, kind by kind.

    Args:
        residual: ``v``, ``(U, n)``.
        weight: By what each is multiplied, ``(U,)``.
        entries: The entries that its slots read, ``(U, J)``.
    """

    def __init__(self, residual: Tensor, weight: Tensor, entries: Tensor) -> None:
        self.residual, self.weight, self.entries = residual, weight, entries
        self._linear: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(
        self,
        own: Tensor,
        precision: scipy.sparse.csr_array,
        design: scipy.sparse.csr_array,
        shown: Tensor,
    ) -> None:
        """Adds the events ``own`` with their ``Q`` and ``S``."""
        read, weight = self.entries[own], self.weight[own]
        turned, matrix = precision, precision
        if design.shape[0] != design.shape[1] or abs(design - _identity(design)).max() > 0:
            turned = precision @ design
            matrix = design.T @ turned
        residual = self.residual[own][:, shown]
        if bool((residual != 0).any()):
            values = torch.from_numpy(turned.T @ residual.cpu().numpy().T).T.to(
                weight
            ) * weight.unsqueeze(-1)
            self._linear.append((read.reshape(-1), values.reshape(-1), _of_each(own, read)))
        lower = scipy.sparse.tril(matrix, format="coo")
        one, other = (torch.from_numpy(each.astype(np.int64)).to(read) for each in lower.coords)
        values = torch.from_numpy(lower.data).to(weight) * weight.unsqueeze(-1)
        first, second = read[:, one], read[:, other]
        # Two slots that read one entry stand for its square twice over.
        values = torch.where((first == second) & (one != other), 2.0 * values, values)
        self._pairs.append(
            (first.reshape(-1), second.reshape(-1), values.reshape(-1), _of_each(own, first))
        )

    def linear(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries, values and events of the linear terms."""
        if not self._linear:
            nothing = self.entries.new_zeros(0)
            return nothing, self.residual.new_zeros(0), nothing
        one, values, events = (torch.cat(each) for each in zip(*self._linear, strict=True))
        return one, values, events

    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two entries, values and events of the quadratic terms."""
        one, other, values, events = (torch.cat(each) for each in zip(*self._pairs, strict=True))
        return one, other, values, events


def _identity(like: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    return scipy.sparse.eye_array(like.shape[0], format="csr")


def _of_each(own: Tensor, wide: Tensor) -> Tensor:
    """The event of each number of ``wide``, one row for each event."""
    return own.unsqueeze(-1).expand(wide.shape).reshape(-1)
