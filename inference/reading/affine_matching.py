r"""Arguments that are affine in the parameters, as in a regression: ``x @ beta[z] + offset``.

Where no single entry of a parameter feeds an entry of the argument (see
``reading/parameter_maps.py``), the argument may still be a weighted sum of several entries,

.. math:: g(\text{argument}_{nk}) = \sum_f x_{nf}\, \theta_{e(k, f)} + b_{nk}.

The weights are differences between runs of the model with one entry moved at a time; runs at
random parameters then confirm that the argument is affine everywhere. The features ``x`` and the
entries ``e`` it multiplies are all that a weighted least-squares update needs, and with them the
argument can be computed without the model. A positive argument may as well be a product of powers
of positive parameters, whose logarithms are the :math:`\theta`; and the probabilities of a
Categorical the softmax of such sums, which are then known up to a shift common to all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.reading.affine import TO_SPACE, AffineMap, CoefficientTable, joined
from ember.inference.reading.predictors import Predictor
from ember.inference.reading.recognition import unwrap
from ember.inference.shapes import compact
from ember.inference.structure import Structure
from ember.inference.supports import base_support

__all__ = ["Moves", "match_affine"]

MOST_ENTRIES = 256  # a run of the model for each: beyond this the numerical update is cheaper
MOST_WEIGHTS = 200_000_000
TOLERANCE = 1e-8
NEAR = 2.0**-10  # a rate or probability that overflows at random coefficients is fine at small ones
EXTREME = 15.0


class Moves:
    """Runs of the model with one parameter, or one entry of it, moved; each is run once."""

    def __init__(
        self,
        structure: Structure,
        params: Sequence[Mapping[str, Tensor]],
        traces: Sequence[Any],
        step: float = 1.0,
    ) -> None:
        self.structure, self.params, self.traces, self.step = structure, params, traces, step
        self._moved: dict[tuple[str, int | None], Any] = {}
        self._nearby: Moves | None = None

    def __call__(self, name: str, entry: int | None = None) -> Any:
        """The run with an entry one step larger, or a whole parameter moved in its support."""
        if (name, entry) not in self._moved:
            value = self.params[0][name].clone()
            if entry is None:
                parameter = self.structure.parameters[name]
                free = parameter.to_unconstrained(value) + 0.5 * self.step
                value = parameter.to_constrained(free).expand(parameter.shape)
            else:
                value.view(-1)[entry] += self.step
            self._moved[name, entry] = self.structure.trace({**self.params[0], name: value})
        return self._moved[name, entry]

    @property
    def near(self) -> "Moves":
        """The same with all real parameters close to zero, and small steps."""
        if self._nearby is None:
            reals = {n for n, p in self.structure.parameters.items() if _is_real(p.support)}
            params = [
                {n: NEAR * v if n in reals else v for n, v in values.items()}
                for values in self.params
            ]
            traces = [self.structure.trace(values) for values in params]
            self._nearby = Moves(self.structure, params, traces, NEAR)
        return self._nearby


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
        for near in (False, True):
            around = moves.near if near else moves
            seen = [_value(trace, site, predictor) for trace in around.traces]
            found = _match(site, predictor, around, seen)
            if found is not None:
                return predictor.by, found
            extreme = [not bool(value.isfinite().all()) for value in seen]
            extreme += [float(value.abs().max()) > EXTREME for value in seen]
            if predictor.space == "raw" or not any(extreme):
                break
    return None


def _match(site: str, predictor: Predictor, moves: Moves, values: list[Tensor]) -> AffineMap | None:
    sources = _sources(site, predictor, moves, values[0])
    if sources is None or not all(bool(value.isfinite().all()) for value in values):
        return None
    logs = tuple(n for n in sources if not _is_real(moves.structure.parameters[n].support))
    weights = _weights(site, predictor, moves, values[0], sources, logs)
    if weights is None:
        return None
    origin = joined(sources, moves.params[0], logs)
    for at, value in zip(moves.params[1:], values[1:], strict=True):
        predicted = values[0] + weights @ (joined(sources, at, logs) - origin)
        if not bool(((predicted - value).abs() <= TOLERANCE * (1.0 + value.abs())).all()):
            return None
    offset = values[0] - weights @ origin
    offset = torch.where(offset.abs() > 1e-12 * (1.0 + values[0].abs().max()), offset, 0.0)
    if predictor.event_dim:
        weights = _shifted(weights)
    latents = _latent_dims(moves, site, weights.dim() - 1, predictor.event_dim)
    return _map(weights, offset, predictor, sources, logs, latents)


def _latent_dims(moves: Moves, site: str, batch: int, event: int) -> list[int]:
    """Which of the argument's batch dims are those of latents' values: no plates, nor entries."""
    node = moves.traces[0].nodes[site]
    inner = len(unwrap(node["fn"]).base.batch_shape) - len(node["fn"].batch_shape)
    right = batch - inner - event  # the first dim that is not the site's own batch
    loops = moves.structure.loops
    stacked = {n for c in loops for n in (c.initial, *(f.name for f in c.families))}
    if site not in stacked and not any(c.site == site for c in moves.structure.composites):
        return list(range(max(0, right - moves.structure.nesting)))
    # Opened, the state of a chain stands to the right of its plates. Each step of a loop may read
    # parameters of its own.
    times = {loop.time for loop in loops}
    frames = [f for f in node["cond_indep_stack"] if f.vectorized and f.name not in times]
    plates = {frame.dim for frame in frames}
    return [i for i in range(right) if i - right not in plates]


def _value(trace: Any, site: str, predictor: Predictor) -> Tensor:
    value = predictor.read(unwrap(trace.nodes[site]["fn"]).base).detach().double()
    return TO_SPACE[predictor.space](value)


def _sources(
    site: str, predictor: Predictor, moves: Moves, before: Tensor
) -> tuple[str, ...] | None:
    """Parameters that move the argument, if all are real (or positive, under a log) and few."""
    found = []
    for name, parameter in moves.structure.parameters.items():
        after = _value(moves(name), site, predictor)
        if after.shape == before.shape and bool(((after == before) | after.isnan()).all()):
            continue
        if not _is_real(parameter.support) and (
            predictor.space != "log" or not _is_positive(parameter.support)
        ):
            return None
        found.append(name)
    count = sum(moves.structure.parameters[name].shape.numel() for name in found)
    few = 0 < count <= MOST_ENTRIES and count * before.numel() <= MOST_WEIGHTS
    return tuple(found) if few else None


def _is_real(support: Any) -> bool:
    return base_support(support) in (constraints.real, constraints.real_vector)


def _is_positive(support: Any) -> bool:
    return base_support(support) in (constraints.positive, constraints.nonnegative)


def _weights(
    site: str,
    predictor: Predictor,
    moves: Moves,
    before: Tensor,
    sources: tuple[str, ...],
    logs: tuple[str, ...],
) -> Tensor | None:
    """The change of the argument as each entry moves by one, shape ``(*batch, P)``."""
    columns = []
    for name in sources:
        for entry, value in enumerate(moves.params[0][name].reshape(-1)):
            after = _value(moves(name, entry), site, predictor)
            if after.shape != before.shape:
                return None
            step = torch.log1p(moves.step / value) if name in logs else moves.step
            # What is left of a difference of equal numbers is rounding, not a weight.
            change = after - before
            rounding = 1e-13 * (1.0 + before.abs().max())
            columns.append(torch.where(change.abs() > rounding, change / step, 0.0))
    weights = torch.stack(columns, -1)
    powers = weights.round()
    return torch.where((weights - powers).abs() < 1e-12, powers, weights) if logs else weights


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
            if bool((mirrored <= 1e-12 * (1.0 + first[:, i].abs().max())).any()):
                owner[i] = 0
        other = (1 - owner).expand(*weights.shape[:-2], 1, -1)
        moved = weights - weights.gather(-2, other)
    return torch.where(moved.abs() > 1e-12 * (1.0 + weights.abs().max()), moved, 0.0)


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
    table = CoefficientTable(sources, tuple(tuple(row) for row in rows.tolist()), logs=logs)
    return AffineMap(
        predictor.domain,
        predictor.space,
        table,
        index.reshape(shape),
        compact(weights.gather(-1, entries), keep=1),
        offset if event else compact(offset),
        event,
    )
