r"""Arguments that are affine in the parameters, as in a regression: ``x @ beta[z] + offset``.

Where no single entry of a parameter feeds an entry of the argument (see
``reading/matching/arguments.py``), the argument may still be a weighted sum of several entries,

.. math:: g(\text{argument}_{nk}) = \sum_f x_{nf}\, \theta_{e(k, f)} + b_{nk}.

The weights are differences between a run of the model with all real parameters at zero, where a
covariate multiplied by one comes out to its last digit, and runs with one entry moved at a time;
runs at random parameters then confirm that the argument is affine everywhere. The features ``x``
and the entries ``e`` it multiplies are all that a weighted least-squares update needs, and with
them the argument can be computed without the model. A positive argument may as well be a product of
powers of positive parameters, whose logarithms are the :math:`\theta`; and the probabilities of a
Categorical the softmax of such sums, which are then known up to a shift common to all of them.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.numerics.shapes import compact
from ember.inference.parameters.affine_map import AffineMap, ParameterEntries, joined
from ember.inference.parameters.supports import base_support, is_real
from ember.inference.reading.matching.moves import Moves, transformed_argument
from ember.inference.reading.predictors import Predictor
from ember.inference.reading.trace import Trace, plates_of
from ember.inference.reading.unwrapping import unwrap

__all__ = ["match_affine"]


MOST_ENTRIES = 256  # a run of the model for each: beyond this the numerical update is cheaper
MOST_WEIGHTS = 200_000_000
TOLERANCE = 1e-8
SMALLER = 2.0**-10
EXTREME = 15.0  # a logarithm or logit; beyond it a rate or probability loses its digits
SHORTEST = 2.0**-60  # a step of an entry
FAR = 1e3  # a line that is so long at random coefficients hides everything else in its rounding


def match_affine(
    site: str, predictors: Sequence[Predictor], moves: Moves
) -> tuple[str, AffineMap] | None:
    """The affine map of an argument, with the name to pass it by; None if there is no such map.

    Args:
        site: The site.
        predictors: The ways in which the argument may be linear.
        moves: Runs of the model at random parameters and around the first of them.
    """
    for predictor in predictors:
        start, trace = moves.origin(site, predictor)
        before = transformed_argument(trace, site, predictor)
        if not bool(before.isfinite().all()):
            continue
        found = _match(_Search(site, predictor, moves, start, before))
        if found is not None:
            return predictor.by, found
    return None


@dataclass(frozen=True)
class _Search:
    """An argument seen in one way, and where its entries are moved from.

    Attributes:
        site: The site.
        predictor: The way to see the argument.
        moves: Runs of the model.
        start: The parameters from which entries are moved.
        before: The argument there.
    """

    site: str
    predictor: Predictor
    moves: Moves
    start: Mapping[str, Tensor]
    before: Tensor

    def argument(self, trace: Trace) -> Tensor:
        return transformed_argument(trace, self.site, self.predictor)

    def is_positive_only(self, name: str) -> bool:
        """Whether a parameter counts by its logarithm."""
        return not is_real(self.moves.structure.parameters[name].support)


def _match(search: _Search) -> AffineMap | None:
    sources = _sources(search)
    if sources is None:
        return None
    logs = tuple(name for name in sources if search.is_positive_only(name))
    weights = _weights(search, sources, logs)
    if weights is None:
        return None
    before, predictor = search.before, search.predictor
    offset = before - weights @ joined(sources, search.start, logs)
    if search.start is search.moves.params[0]:
        offset = torch.where(offset.abs() > 1e-12 * (1.0 + before.abs().max()), offset, 0.0)
    if not _holds(search, sources, logs, weights, offset):
        return None
    if predictor.event_dim:
        weights = _shifted(weights)
    latents = _latent_dims(search, weights.dim() - 1)
    return _map(weights, offset, predictor, sources, logs, latents)


def _holds(
    search: _Search,
    sources: tuple[str, ...],
    logs: tuple[str, ...],
    weights: Tensor,
    offset: Tensor,
) -> bool:
    """Whether the argument is as predicted at random coefficients, in a line of moderate size.

    At others it may overflow, or be so long that nothing but the line is seen.
    """
    predictor, moves = search.predictor, search.moves
    sizes = weights.abs().reshape(-1, weights.shape[-1]).amax(0)
    counts = [moves.params[0][name].numel() for name in sources]
    longest = {n: float(s.max()) for n, s in zip(sources, sizes.split(counts), strict=True)}
    enough = 1.0 if predictor.space != "raw" or predictor.event_dim else FAR
    by = {
        n: 2.0 ** -math.ceil(math.log2(size / enough))
        for n, size in longest.items()
        if n not in logs and size > enough
    }
    params, traces = moves.scaled(by)
    for at, trace in zip(params, traces, strict=True):
        value = search.argument(trace)
        predicted = weights @ joined(sources, at, logs) + offset
        error = (predicted - value).abs() / (1.0 + value.abs())
        if not bool((error.nan_to_num(nan=torch.inf) <= TOLERANCE).all()):
            return False
    return True


def _latent_dims(search: _Search, batch: int) -> list[int]:
    """Which of the argument's batch dims are those of latents' values: no plates, nor entries."""
    site, structure = search.site, search.moves.structure
    node = search.moves.traces[0].nodes[site]
    inner = len(unwrap(node["fn"]).base.batch_shape) - len(node["fn"].batch_shape)
    right = batch - inner - search.predictor.event_dim  # the first dim not of the site's own batch
    loops = structure.loops
    stacked = {n for c in loops for n in (c.initial, *(f.name for f in c.families))}
    if site not in stacked and not any(c.site == site for c in structure.composites):
        return list(range(max(0, right - structure.nesting)))
    # Opened, the state of a chain stands to the right of its plates. Each step of a loop may read
    # parameters of its own.
    times = {loop.time for loop in loops}
    plates = {plate.dim for plate in plates_of(node) if plate.name not in times}
    return [i for i in range(right) if i - right not in plates]


def _sources(search: _Search) -> tuple[str, ...] | None:
    """Parameters that move the argument, if all are real (or positive, under a log) and few."""
    sources = []
    parameters = search.moves.structure.parameters
    for name, parameter in parameters.items():
        moved = _moved(search, name, None)
        if moved is None:
            return None
        if bool((moved[0] == search.before).all()):
            continue
        if search.is_positive_only(name) and (
            search.predictor.space != "log" or not _is_positive(parameter.support)
        ):
            return None
        sources.append(name)
    count = sum(parameters[name].shape.numel() for name in sources)
    few = 0 < count <= MOST_ENTRIES and count * search.before.numel() <= MOST_WEIGHTS
    return tuple(sources) if few else None


def _is_positive(support: constraints.Constraint) -> bool:
    return base_support(support) in (constraints.positive, constraints.nonnegative)


def _weights(search: _Search, sources: tuple[str, ...], logs: tuple[str, ...]) -> Tensor | None:
    """The change of the argument as each entry moves by one, shape ``(*batch, P)``."""
    before = search.before
    columns = []
    for name in sources:
        for entry, value in enumerate(search.start[name].reshape(-1)):
            moved = _moved(search, name, entry)
            if moved is None:
                return None
            after, length = moved
            step = torch.log1p(length / value) if name in logs else length
            # What is left of a difference of equal numbers is rounding, not a weight.
            change = after - before
            size = torch.maximum(after.abs(), before.abs())
            if search.predictor.event_dim:
                size = size.amax(-1, keepdim=True)
            columns.append(torch.where(change.abs() > 1e-13 * size, change / step, 0.0))
    weights = torch.stack(columns, -1)
    powers = weights.round()
    return torch.where((weights - powers).abs() < 1e-12, powers, weights) if logs else weights


def _moved(search: _Search, name: str, entry: int | None) -> tuple[Tensor, float] | None:
    """The argument after a step of one entry, or of a whole parameter; and how long a step it was.

    It is so short that nothing overflows, and long enough to be seen. None if the argument has no
    such value, or changes shape.
    """
    before, predictor, moves = search.before, search.predictor, search.moves
    move = moves.whole if entry is None else functools.partial(moves.entry, entry=entry)
    exact = predictor.space == "raw" and not predictor.event_dim
    step = 1.0
    while True:
        after = search.argument(move(search.start, name, step=step))
        if after.shape != before.shape:
            return None
        finite = bool(after.isfinite().all())
        extreme = not finite or float(after.abs().max()) > EXTREME
        if extreme and predictor.space != "raw":
            step *= SMALLER
            if step < SHORTEST:
                return None
            continue
        if not finite:
            return None
        change = float((after - before).abs().max())
        if step == 1.0 and 0.0 < change < 1.0 and entry is not None and not exact:
            # Beside a normaliser a small change would lose digits: a longer step.
            step = 2.0 ** math.floor(math.log2(4.0 / change))
            continue
        return after, step


def _shifted(weights: Tensor) -> Tensor:
    """Weights of centred logits, moved by what is common to all classes so that most are zero.

    An entry that feeds a minority of the classes leaves the same number in all others, the
    median. With two classes an entry and its mirror image cannot be told apart: the first of
    them is given to the first class.
    """
    classes = weights.shape[-2]
    if classes != 2:
        moved = weights - weights.median(-2, keepdim=True).values
    else:
        first = weights[..., 0, :].flatten(0, -2) if weights.dim() > 2 else weights[:1]
        owner = torch.ones(weights.shape[-1], dtype=torch.long)
        for i in range(weights.shape[-1]):
            mirrored = (first[:, i + 1 :] + first[:, i : i + 1]).abs().amax(0)
            if bool((mirrored <= 1e-12 * first[:, i].abs().max()).any()):
                owner[i] = 0
        other = (1 - owner).expand(*weights.shape[:-2], 1, -1)
        moved = weights - weights.gather(-2, other)
    size = weights.abs().reshape(-1, weights.shape[-1]).amax(0)
    return torch.where(moved.abs() > 1e-12 * size, moved, 0.0)


def _map(
    weights: Tensor,
    offset: Tensor,
    predictor: Predictor,
    sources: tuple[str, ...],
    logs: tuple[str, ...],
    latents: list[int],
) -> AffineMap:
    """Brings dense weights to features and the entries that they multiply.

    Which entries are read may vary with the dims of ``latents`` alone, and with the class of a
    logit.
    """
    batch, event = weights.dim() - 1, predictor.event_dim
    data = [i for i in range(batch - event) if i not in latents]
    used = weights != 0
    used = used.any(data, keepdim=True) if data else used
    states = used.reshape(-1, used.shape[-1])
    width = max(1, int(states.sum(-1).max()))
    order = torch.argsort((~states).to(torch.int8), dim=-1, stable=True)[:, :width]
    rows, index = torch.unique(order, dim=0, return_inverse=True)
    shape = used.shape[:-1]
    entries = order.reshape(*shape, width).expand(*weights.shape[:-1], width)
    table = ParameterEntries(sources, tuple(tuple(row) for row in rows.tolist()), logs=logs)
    return AffineMap(
        predictor.domain,
        predictor.space,
        table,
        index.reshape(shape),
        compact(weights.gather(-1, entries), keep=1),
        offset if event else compact(offset),
        event,
    )
