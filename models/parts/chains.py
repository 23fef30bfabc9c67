"""What hidden Markov models share: the chain, and the distribution of a whole sequence."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ember.models.parts.checks import row_frequency, step_frequency, step_mask
from ember.models.parts.emissions import beside
from ember.models.parts.missing import shown_entries, shown_steps
from ember.models.parts.plates import data_plate
from ember.models.parts.priors import HALF_COUNT, Hyperparameters

__all__ = ["CHAIN_KEYS", "HiddenMarkov", "Sequences", "chain", "stationary"]

CHAIN_KEYS = ("initial", "transition")


@dataclass(frozen=True)
class Sequences:
    """Data in steps: one sequence `(T, ...)`, or several `(S, T, ...)`.

    Attributes:
        x: the sequences; what lies beyond their own steps is harmless.
        rows: their own steps, one after another.
        mask: which steps are their own (S, T); None if all are.
        shown: which entries are there, like `x`; None if all are.
        frequency: how often each sequence counts (S,), as given.
        batched: whether there are several.
    """

    x: Tensor
    rows: Tensor
    mask: Tensor | None
    shown: Tensor | None
    frequency: Tensor | Sequence[float] | None
    batched: bool

    @staticmethod
    def of(
        x: Tensor,
        lengths: Tensor | Sequence[int] | None,
        frequency: Tensor | Sequence[float] | None,
        batched: bool,
    ) -> "Sequences":
        """Sequences padded to one length, of which each has so many steps of its own."""
        mask = step_mask(lengths, x, batched)
        if mask is None:
            rows = x.flatten(0, 1) if batched else x
            return Sequences(x, rows, None, shown_entries(x), frequency, batched)
        inside = mask.reshape(*mask.shape, *[1] * (x.dim() - 2))
        rows = x[mask]
        padded = torch.where(inside, x, torch.where(rows[:1].isnan(), 0, rows[:1]))
        return Sequences(padded, rows, mask, shown_entries(padded), frequency, batched)

    @property
    def once(self) -> Tensor:
        """How often each of the rows counts."""
        return step_frequency(self.frequency, self.x, self.mask, self.batched)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Sequences":
        """The same with a function applied to the data and to the rows."""
        return replace(self, x=function(self.x), rows=function(self.rows))


def chain(
    data: Sequences,
    states: int,
    emission: TorchDistribution,
    prior: Hyperparameters,
    plate: pyro.plate,
    *,
    stationary_start: bool,
    name: str = "x",
) -> None:
    """Declare `initial` (K), `transition` (K, K) and the sequences with their states.

    `emission` has the states in its last batch dimension and a dimension for steps to the left of
    them. Of the data only the sequences' own steps, and of these the entries `shown`, are looked
    at.
    """
    concentration = prior.above("transition", (states, states), HALF_COUNT)
    if not stationary_start:
        start = dist.Dirichlet(prior.above("initial", (states,), HALF_COUNT))
        initial: Tensor = pyro.sample("initial", start)
    with plate:
        transition: Tensor = pyro.sample("transition", dist.Dirichlet(concentration))
    if stationary_start:
        initial = pyro.deterministic("initial", stationary(transition))
    emission, x = shown_steps(emission, data.x, data.shown)
    if data.mask is not None:
        emission = emission.mask(data.mask.unsqueeze(-1))
    transition = beside(transition, 2)
    steps = x.shape[1] if data.batched else x.shape[0]
    whole = HiddenMarkov(initial.log(), transition.log(), emission, duration=steps)  # type: ignore[no-untyped-call]
    weights = None if data.frequency is None else row_frequency(data.frequency, x)
    with data_plate(x.shape[0], weights, "sequences") if data.batched else nullcontext():
        pyro.sample(name, whole, obs=x)


class HiddenMarkov(dist.DiscreteHMM):
    r"""Pyro's ``DiscreteHMM`` with the textbooks' timing: the first state emits.

    .. math:: p(x) = \sum_{z} \pi_{z_1} p(x_1 \mid z_1) \prod_{t>1} A_{z_{t-1} z_t} p(x_t \mid z_t)

    ``DiscreteHMM`` moves once before its first emission. Arguments and shapes are the same; a
    transition that varies in time leads *into* each step, and the first one is not used.
    """

    emits_at_once = True

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of sequences ``(..., T, *event)``, states summed out."""
        steps = value.shape[value.dim() - self.event_dim]
        log_prob: Tensor = self._delayed(steps).log_prob(value)
        return log_prob

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw sequences."""
        if self.duration is None:
            raise ValueError("a HiddenMarkov without duration= has no length to sample.")
        draws: Tensor = self._delayed(self.duration).sample(torch.Size(sample_shape))
        return draws

    def filter(self, value: Tensor) -> dist.Categorical:
        """The last step's state given a sequence."""
        last: dist.Categorical = self._delayed(value.shape[value.dim() - self.event_dim]).filter(
            value
        )
        return last

    def _delayed(self, steps: int) -> dist.DiscreteHMM:
        """The same chain as Pyro times it: the first move stays where it is."""
        moves = self.transition_logits
        stay = torch.eye(moves.shape[-1], dtype=moves.dtype, device=moves.device).log()
        later = moves[..., 1:, :, :] if moves.dim() > 2 and moves.shape[-3] > 1 else moves
        if moves.dim() == 2:
            later = moves.unsqueeze(0)
        batch = later.shape[:-3]
        later = later.expand(*batch, steps - 1, *moves.shape[-2:])
        return dist.DiscreteHMM(
            self.initial_logits,
            torch.cat([stay.expand(*batch, 1, -1, -1), later], -3),
            self.observation_dist,
            validate_args=False,
            duration=steps,
        )


def stationary(transition: Tensor) -> Tensor:
    """The distribution (K,) that one step of an ergodic chain (K, K) leaves as it is.

    Solves `p (I - A + U) = 1` with U a matrix of ones (Zucchini, MacDonald & Langrock 2016, section
    1.3.2).
    """
    states = transition.shape[-1]
    one = torch.ones(states, dtype=transition.dtype, device=transition.device)
    system = torch.eye(states, dtype=one.dtype, device=one.device) - transition + 1.0
    solution: Tensor = torch.linalg.solve(system.mT, one)
    return solution
