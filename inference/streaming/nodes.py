"""Enough nodes for the latents of a fit in pieces, as a fit in memory takes them.

The gap between the even and the odd nodes of a latent (``queries/on_nodes.py``) is that of the
worst row. So it is asked of the sample where the passes begin, and of all pieces where they end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.kept_plan import ReadingOptions
from ember.inference.iteration.loop import DataLost
from ember.inference.iteration.run import Run
from ember.inference.numerics.quadrature import Quadrature
from ember.inference.plan.plan import Params, Plan
from ember.inference.queries.on_nodes import finer_rules, node_gaps, warning_of_gaps
from ember.inference.streaming.adding import without_values_of_rows
from ember.inference.streaming.stream import Stream

__all__ = ["EnoughNodes"]


@dataclass(frozen=True)
class _GapsAt:
    """What a piece is asked: the gaps of its rows at some parameters."""

    params: Params

    def __call__(self, plan: Plan) -> dict[str, float]:
        return node_gaps(plan, self.params)


@dataclass(frozen=True)
class EnoughNodes:
    """A stream with as many nodes as its rows ask for.

    Attributes:
        stream: The stream.
        options: How its model is read.
        gaps: The largest gap of each latent that was found.
    """

    stream: Stream
    options: ReadingOptions
    gaps: Mapping[str, float] = field(default_factory=dict)

    def given(self, nodes: Mapping[str, int]) -> EnoughNodes:
        """The same with some numbers of nodes, such as those that a checkpoint is for."""
        known = self.stream.template.structure.nodes
        return self._with(
            {
                name: dataclasses.replace(known[name].rule, nodes=count)
                for name, count in nodes.items()
                if name in known and known[name].rule.nodes != count
            }
        )

    def for_sample(self, start: Callable[[Stream], Params]) -> EnoughNodes:
        """The same with enough nodes for the sampled rows, where the passes begin."""
        found = self
        while found.stream.template.on_nodes:
            gaps = node_gaps(found.stream.template, start(found.stream))
            finer = finer_rules(found.stream.template, gaps)
            if not finer:
                break
            found = found._with(finer)
        return found

    def for_pieces(self, run: Run) -> tuple[EnoughNodes, bool]:
        """The same with the gaps of all rows, or with more nodes; and whether there are more.

        It takes one pass where there are nodes.
        """
        template = self.stream.template
        if not template.on_nodes or run.stop is StopReason.INTERRUPTED:
            return self, False
        try:
            gaps = self.stream.total(_GapsAt(run.params), _largest)
        except (DataLost, KeyboardInterrupt):  # the fit itself has ended
            return self, False
        finer = finer_rules(template, gaps)
        found = self._with(finer) if finer else self
        return dataclasses.replace(found, gaps=gaps), bool(finer)

    @property
    def warning(self) -> str:
        """A sentence about the first latent whose nodes are too few, or none."""
        return warning_of_gaps(self.stream.template, self.gaps)

    def _with(self, rules: Mapping[str, Quadrature]) -> EnoughNodes:
        """The same with other rules for some latents: the sample is read anew."""
        if not rules:
            return self
        structure = self.stream.template.structure
        integrate = {**self.options.integrate, **rules}
        options = self.options._replace(model=structure.model, integrate=integrate)
        template = options.read(structure.arguments.args, structure.arguments.kwargs)
        template = without_values_of_rows(template)
        return EnoughNodes(dataclasses.replace(self.stream, template=template), options)


def _largest(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: max(gap, other.get(name, 0.0)) for name, gap in one.items()}
