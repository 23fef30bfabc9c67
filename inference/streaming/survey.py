"""One pass over all pieces before a fit: their rows, some of these, and moments for default priors.

The rows are drawn so that neither the order of the pieces nor who reads them matters: each gets a
random number seeded by the content of its piece, and those with the smallest numbers are taken.
"""

import collections
import dataclasses
import itertools
import math
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from pyro import validation_enabled
from torch import Tensor

from ember.inference.inputs.arguments import Arguments
from ember.inference.inputs.rows import rows_of, taken
from ember.inference.iteration.kept_plan import ReadingOptions
from ember.inference.plan.plan import Plan
from ember.inference.reading.checks.sites import check_observed
from ember.inference.reading.reader import first_run
from ember.inference.reading.sequences import base_name
from ember.inference.reading.structure import Structure
from ember.inference.streaming.pooling import Moments, Noting, merged

__all__ = ["PASSES", "FirstPlan", "Survey", "depends_on_itself", "joined", "survey"]


PASSES = 5  # over moments that depend on others


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass shows.

    Attributes:
        sizes: The rows of each piece.
        first: The first piece.
        sample: Some rows, in an order of their own.
        keys: Their random numbers, in ascending order.
        moments: Those of all rows that the model asks for.
        own: Those of the first piece.
    """

    sizes: tuple[int, ...]
    first: Arguments
    sample: Arguments
    keys: Tensor
    moments: tuple[Moments, ...] = ()
    own: tuple[Moments, ...] = ()

    @property
    def rows(self) -> int:
        """The rows of all pieces."""
        return sum(self.sizes)


class FirstPlan:
    """The plan for the first piece, read once: the roles of sites are those in all pieces.

    Args:
        options: How the model is read.
    """

    def __init__(self, options: ReadingOptions) -> None:
        self._options = options
        self._plan: Plan | None = None

    def __call__(self, piece: Arguments) -> Plan:
        """The plan, given the piece at the first call."""
        if self._plan is None:
            # A piece may have fewer rows than a fit needs; the sample will say what to warn of.
            with validation_enabled(False), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                self._plan = self._options.read(piece.args, piece.kwargs)
        return self._plan


def survey(
    read: FirstPlan,
    pieces: Iterable[tuple[int, Arguments]],
    count: int,
    seed: int,
    known: Sequence[Moments] = (),
) -> Survey:
    """Reads every piece once.

    Args:
        read: Reads the model; it is run on each piece, and may refuse it.
        pieces: The pieces, numbered.
        count: How many rows to draw at most.
        seed: For the drawing.
        known: Moments of all rows that the model is told of, where others depend on them.
    """
    found: Survey | None = None
    for number, piece in pieces:
        if any(tensor.dim() and not len(tensor) for tensor in piece.tensors[:1]):
            raise ValueError(f"piece {number} of the data has no rows; leave it out.")
        try:
            own = tuple(_moments(read(piece).structure, piece, known))
        except (ValueError, TypeError) as error:
            raise type(error)(f"piece {number} of the data: {error}") from error
        if found is not None:
            _check_alike(number, piece, found.first, _lengths(read(found.first)))
        keys, sample = _drawn(piece, count, seed)
        each = Survey((rows_of(piece),), piece, sample, keys, own, own)
        found = each if found is None else joined([found, each], count)
    if found is None:
        raise ValueError("the loader is empty; give it at least one piece of data.")
    return found


def joined(surveys: Sequence[Survey], count: int) -> Survey:
    """The survey of several sets of pieces together."""
    first = surveys[0]
    keys = torch.cat([each.keys for each in surveys])
    order = keys.argsort(stable=True)[:count]
    whole = _together([each.sample for each in surveys], [len(each.keys) for each in surveys])
    moments: Sequence[Moments] = ()
    for each in surveys:
        moments = merged(moments, each.moments)
    return Survey(
        tuple(size for each in surveys for size in each.sizes),
        first.first,
        taken(whole, order),
        keys[order],
        tuple(moments),
        first.own,
    )


def depends_on_itself(read: FirstPlan, found: Survey) -> bool:
    """Whether moments are of rows that were changed by others, which were those of one piece."""
    if len(found.own) < 2:
        return False
    again = _moments(read(found.first).structure, found.first, found.moments)
    return not all(map(_same, found.own, again))


def _moments(
    structure: Structure, piece: Arguments, known: Sequence[Moments] = ()
) -> list[Moments]:
    """The moments of one piece that the model asks for; it also says whether it takes the piece.

    Args:
        structure: The roles of the model's sites.
        piece: The arguments with the piece's rows.
        known: What the model is told instead.
    """
    if structure.origins:  # continuous latents, with a value for each row
        with validation_enabled(False), Noting(known) as noting:
            first_run(structure.model, piece, {})
        return noting.own
    step_by_step = dataclasses.replace(structure.with_arguments(piece), loops=())
    with Noting(known) as noting:
        nodes = step_by_step.trace({}).nodes
    for name in itertools.chain.from_iterable(map(structure.own_names, structure.observed)):
        if name in nodes:  # a piece may lack what others have
            check_observed(name, nodes[name])
    return noting.own


def _lengths(plan: Plan) -> set[int]:
    """How many steps the sequences of a plan have, where these are its rows."""
    if plan.row is None:
        return set()
    members = collections.Counter(base_name(name) for name in plan.structure.steps)
    return {*members.values(), *(chain.steps for chain in plan.chains.values())}


def _check_alike(number: int, piece: Arguments, first: Arguments, lengths: set[int]) -> None:
    """Refuses pieces with other arguments, options or columns than the first.

    Args:
        number: That of the piece.
        piece: Its arguments.
        first: Those of the first piece.
        lengths: How many steps its sequences have, which may be others elsewhere.
    """
    if len(piece.args) != len(first.args) or piece.kwargs.keys() != first.kwargs.keys():
        raise ValueError(
            f"piece {number} of the data gives the arguments {_named(piece)} where the first gives "
            f"{_named(first)}; give every piece the same."
        )
    pairs = [*zip(piece.args, first.args, strict=True)]
    for own, other in [*pairs, *((piece.kwargs[n], v) for n, v in first.kwargs.items())]:
        is_option = isinstance(other, (int, float, str)) and type(own) is type(other)
        if is_option and own != other and not (own != own and other != other):  # NaN is itself
            raise ValueError(
                f"piece {number} of the data comes with {own!r} where the first comes with "
                f"{other!r}; give every piece the same options."
            )
    for own, other in zip(piece.tensors, first.tensors, strict=False):
        free = 2 if other.dim() > 1 and other.size(1) in lengths else 1
        if own.dim() != other.dim() or own.shape[free:] != other.shape[free:]:
            raise ValueError(
                f"piece {number} of the data has rows of shape {tuple(own.shape[1:])} where the "
                f"first has {tuple(other.shape[1:])}; give every piece the same columns."
            )


def _named(piece: Arguments) -> str:
    """The arguments in words."""
    positional = [f"{len(piece.args)} by position"] if piece.args else []
    return ", ".join([*positional, *sorted(piece.kwargs)]) or "none"


def _same(one: object, other: object) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)]  # type: ignore[arg-type]
    return all(a is b or (a is not None and torch.allclose(a, b, equal_nan=True)) for a, b in pairs)


def _drawn(piece: Arguments, count: int, seed: int) -> tuple[Tensor, Arguments]:
    """Random numbers of some rows, the smallest, and these rows."""
    generator = torch.Generator().manual_seed(zlib.crc32(_bytes(piece), seed & 0xFFFFFFFF))
    keys = torch.rand(rows_of(piece), generator=generator, dtype=torch.float64)
    order = keys.argsort(stable=True)[:count]
    return keys[order], taken(piece, order)


def _bytes(piece: Arguments) -> bytes:
    tensors = [t for t in piece.tensors if t.layout == torch.strided]
    return tensors[0].contiguous().cpu().numpy().tobytes() if tensors else b""


def _together(samples: Sequence[Arguments], counts: Sequence[int]) -> Arguments:
    """Rows of several pieces as one set of arguments; what is no row's is that of the first."""

    def join(values: Sequence[object]) -> object:
        first = values[0]
        if isinstance(first, Tensor):
            rows = zip(values, counts, strict=True)
            if all(isinstance(v, Tensor) and v.dim() and len(v) == n for v, n in rows):
                return _stacked([v for v in values if isinstance(v, Tensor)])
            return first
        if isinstance(first, dict):
            each = [v for v in values if isinstance(v, dict)]
            return {key: join([v[key] for v in each]) for key in first}
        if isinstance(first, (list, tuple)):
            lists = [v for v in values if isinstance(v, (list, tuple))]
            if all(len(v) == n for v, n in zip(lists, counts, strict=True)) and all(
                isinstance(item, (int, float)) for v in lists for item in v
            ):
                return [item for v in lists for item in v]
            return type(first)(join(items) for items in zip(*lists, strict=True))
        return first

    args = tuple(join([s.args[i] for s in samples]) for i in range(len(samples[0].args)))
    kwargs = {name: join([s.kwargs[name] for s in samples]) for name in samples[0].kwargs}
    return Arguments(args, kwargs)


def _stacked(blocks: Sequence[Tensor]) -> Tensor:
    """Rows of several pieces; sequences that were padded to another length end in gaps."""
    if blocks[0].dim() < 2 or len({block.size(1) for block in blocks}) == 1:
        return torch.cat([*blocks])
    steps = max(block.size(1) for block in blocks)
    gap = math.nan if blocks[0].is_floating_point() else 0
    longer = [(len(b), steps - b.size(1), *b.shape[2:]) for b in blocks]
    return torch.cat(
        [torch.cat([b, b.new_full(s, gap)], 1) for b, s in zip(blocks, longer, strict=True)]
    )
