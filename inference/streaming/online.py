r"""EM that steps before a pass over the data has ended: stepwise EM, and with reduced variance.

With the statistics :math:`S_b(\theta)` of a piece of :math:`n_b` rows, scaled to all :math:`n`,
stepwise EM keeps a running average,

.. math::

    s \leftarrow (1 - \gamma_k)\, s + \gamma_k \frac{n}{n_b} S_b(\theta), \qquad
    \theta \leftarrow M(s), \qquad \gamma_k = (k + 2)^{-\alpha}, \quad \tfrac12 < \alpha \le 1.

Near the optimum the noise of single pieces is left, so the parameters of the last half of the steps
are averaged (Polyak & Ruppert). Reduced variance takes the difference from a pass over all pieces
at :math:`\tilde\theta`, where the average then begins,

.. math::

    s \leftarrow (1 - \rho)\, s + \rho \Bigl(
        \frac{n}{n_b} \bigl[S_b(\theta) - S_b(\tilde\theta)\bigr] + S(\tilde\theta) \Bigr),

so its noise vanishes as both parameters come to the optimum, and steps need not shrink.

References: Cappé & Moulines (2009), *On-line expectation-maximization algorithm for latent data
models*, JRSS B 71, 593-613; Chen, Zhu, Teh & Zhang (2018), *Stochastic expectation maximization
with variance reduction*, NeurIPS 31.
"""

import contextlib
import dataclasses
import functools
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.inputs.arguments import Arguments
from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.run import Run
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.maximisation.degeneracy import Degenerate
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.streaming.parts import Part, in_template
from ember.inference.streaming.steps import m_step
from ember.inference.streaming.stream import Stream

__all__ = ["METHODS", "Online", "check_online"]


METHODS = ("stepwise", "variance-reduced")
RATE = 0.3  # of a step with reduced variance
SHORTENINGS = 6  # of a step that is absurd, to a quarter each
ABSURD = 1.0  # nats a row that one may fall by
FIRST = 2.0  # added to the number of a step of the other kind


def check_online(template: Plan) -> None:
    """Refuses models whose statistics at several parameters have no average.

    Args:
        template: The plan for some rows.

    Raises:
        ValueError: Naming a latent.
    """
    moving = [name for name in template.on_nodes if template.dependencies(name)]
    if moving:
        raise ValueError(
            f"latent '{min(moving)}' is integrated on nodes that follow the parameters of its "
            "prior, so statistics at different parameters have no average; use fit_batches."
        )


@dataclass(frozen=True)
class Online:
    """A few passes of steps, one for each piece.

    Attributes:
        stream: The pieces.
        method: "stepwise" or "variance-reduced".
        passes: How many passes of steps to make.
        decay: The exponent ``alpha`` of stepwise EM.
        name: How the fit calls itself.
    """

    stream: Stream
    method: str
    passes: int
    decay: float
    name: str

    def __call__(self, start: Params, began: float) -> Run:
        """The run from given parameters; the history has the objective after each pass."""
        way = Trajectory(dict(start), began)
        best = self.stream.statistics(start)
        way.begin(best.objective)
        stop, warning, current = StopReason.STEPS, "", best
        try:
            for turn in range(self.passes):
                params = self._pass(current, turn)
                current = self.stream.statistics(params)
                # The noise of the steps may outweigh what a pass has gained: the best is kept.
                best = current if current.objective > best.objective else best
                way.take(best.params, best.objective)
        except KeyboardInterrupt:
            stop = StopReason.INTERRUPTED
        except Degenerate as error:
            stop, warning = StopReason.DEGENERATE, str(error)
        except (RuntimeError, ValueError, ArithmeticError) as error:
            stop = StopReason.FAILED
            warning = f"{self.name}: {stop.value} ({' '.join(str(error).split())})"
        run = Run.at_end(way, best, self.stream.template, self.name, stop)
        return dataclasses.replace(run, warning=warning, evaluations=self.stream.passes)

    def _pass(self, anchor: Statistics, turn: int) -> dict[str, Tensor]:
        """The parameters after a step for each piece, averaged over the last half of them.

        Args:
            anchor: The statistics of all pieces where the pass begins.
            turn: The number of the pass.
        """
        stream, template = self.stream, self.stream.template
        coordinates = Coordinates(template.structure.parameters)
        before, average = anchor.params, anchor
        now = m_step(template, average)
        visited: list[Tensor] = []
        earlier = turn * stream.pieces
        for step, (_, piece) in enumerate(stream.source.pieces(f"online pass {turn + 1}")):
            own = stream.parts(now, piece)
            share = stream.rows / own.rows
            latest = in_template(template, [own]).statistics(template, now, 0.0)
            if self.method == "variance-reduced":
                gain = RATE
                then = in_template(template, [stream.parts(before, piece)])
                change = then.statistics(template, now, 0.0)
                latest = _weighed((share, latest), (-share, change), (1.0, anchor))
            else:
                gain = (FIRST + step + earlier) ** -self.decay
                latest = _weighed((share, latest))
            average = _weighed((1.0 - gain, average), (gain, latest))
            moved = m_step(template, dataclasses.replace(average, params=now))
            now = self._believable(piece, own, now, moved)
            visited.append(coordinates.flatten(now))
        last = torch.stack(visited[len(visited) // 2 :])
        averaged = last.mean(0)
        whole = torch.where(torch.isfinite(averaged), averaged, last[-1])
        return {name: value.clone() for name, value in coordinates.unflatten(whole).items()}

    def _believable(
        self, piece: Arguments, own: Part, before: Params, after: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """A step to ``after``, or less of it where the rows at hand say that it is absurd.

        What is known to second order may overshoot by any measure; statistics never do.
        """
        if own.second_order is None:
            return after
        coordinates = Coordinates(self.stream.template.structure.parameters)
        for i in range(SHORTENINGS):
            moved = after if not i else _between(coordinates, before, after, 0.25**i)
            with contextlib.suppress(RuntimeError, ValueError, ArithmeticError):
                there = self.stream.parts(moved, piece).log_likelihood
                if there >= own.log_likelihood - ABSURD * own.rows:
                    return moved
        return dict(before)


def _between(
    coordinates: Coordinates, one: Params, other: Params, share: float
) -> dict[str, Tensor]:
    """Parameters so far on the way from one place to another, along the free reals."""
    start = coordinates.flatten(one)
    way = coordinates.flatten(other) - start
    way = torch.where(way.isfinite(), way, 0.0)
    return coordinates.unflatten(start + share * way)


def _weighed(*each: tuple[float, Statistics]) -> Statistics:
    """A weighted sum of statistics in the cells of the template, with the rest of the first."""
    (_, first), *_ = each
    sums: dict[TieKey, tuple[TiedFactors, Tensor]] = {}
    for by, found in each:  # a piece may lack what others have
        for key, (tied, own) in found.sums.items():
            sums[key] = (tied, by * own + sums[key][1] if key in sums else by * own)
    parts = [by * s.second_order for by, s in each if s.second_order is not None]
    second_order = functools.reduce(operator.add, parts) if parts else None
    return dataclasses.replace(first, sums=sums, second_order=second_order)
