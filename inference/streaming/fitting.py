"""A fit of data in pieces: started on a sample of the rows, finished exactly on all of them.

On a sample EM costs next to nothing, and where it comes to rest is as near to the optimum of all
rows as a sample of this size can say. The passes over all rows begin there.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ember.inference.initialisation.starting_params import Init, starting_params
from ember.inference.inputs.arguments import Arguments, Model
from ember.inference.inputs.rows import rows_of
from ember.inference.iteration.acceleration.em_map import EMMap, above_the_floor
from ember.inference.iteration.acceleration.schemes import scheme_for
from ember.inference.iteration.convergence import StoppingRule, StopReason
from ember.inference.iteration.loop import Loop
from ember.inference.iteration.progress import progress_bar
from ember.inference.iteration.run import Run
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.optimality.vanishing import off_the_floor
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Plan
from ember.inference.plan.rebinding import with_some_rows
from ember.inference.plan.without_data import IN_PIECES, LeftOut, PlanWithoutData
from ember.inference.queries.relabelling import in_canonical_order
from ember.inference.storage.plan_record import record_of
from ember.inference.streaming.checkpoints import Checkpoints, read_checkpoint, same_params
from ember.inference.streaming.passes import PassesOverPieces
from ember.inference.streaming.steps import Steps
from ember.inference.streaming.stream import Stream

__all__ = ["InPieces", "finished", "start_of"]

EXAMPLE = 1000  # rows that a fit keeps, to draw new ones by
SAME = 1e-9  # relative difference of objectives at the same parameters


@dataclass(frozen=True)
class InPieces:
    """The loop over all pieces.

    Attributes:
        model: The model as the user gave it.
        init: The user's wish for a start.
        on_sample: A whole fit of the sample.
        accelerate: The name of the scheme.
        stop: When to stop.
        limit: The largest number of iterations.
        method: How the fit calls itself.
        progress: Whether to show a bar.
        classification: Whether the E-step takes the latents' most probable joint value.
    """

    model: Model
    init: Init
    on_sample: Callable[[Plan], Run]
    accelerate: str | None
    stop: StoppingRule | None
    limit: int
    method: str
    progress: bool
    classification: bool = False

    def __call__(
        self,
        stream: Stream,
        began: float,
        checkpoint: str | Path | None,
        every: float,
        resume: str | Path | None = None,
        before: Run | None = None,
    ) -> Run:
        """The run to its end.

        Args:
            stream: The E-step.
            began: When the fit began, by ``time.perf_counter``.
            checkpoint: Where to write checkpoints.
            every: How many seconds apart.
            resume: The checkpoint to go on from.
            before: The run that this one goes on from, on fewer nodes: its history, moved to the
                objective as it is now, is a part of this one's.

        Raises:
            ValueError: If the checkpoint is of another fit.
        """
        template = stream.template
        path = Path(checkpoint) if checkpoint is not None and stream.ranks.rank == 0 else None
        about = self._about(stream)
        one_pass = functools.partial(stream.statistics, maximum=self.classification)
        steps = Steps(template, one_pass)
        em_map = EMMap(
            steps.e_step,
            above_the_floor(template, steps.m_step),
            Coordinates(template.structure.parameters, template.superposed_parameters()),
            functools.partial(starting_params, template, varied=True),
            self.classification,
            guessed=functools.partial(off_the_floor, template) if template.components else None,
        )
        with progress_bar(self.progress, self.limit, self.method) as tick:
            loop = Loop(
                template,
                em_map,
                self.stop,
                scheme_for(None if self.classification else self.accelerate, template),
                on_step=lambda way: tick(way.history[-1]),
                method=self.method,
                keep=Checkpoints(path, every, about),
                report=stream.statistics,
            )
            if before is not None:
                moved = steps.looked_ahead(before.params).objective - float(before.history[-1])
                history, times = (before.history + moved).tolist(), before.times.tolist()
                run = loop(Trajectory(before.params, began, history, times), self.limit)
            elif resume is None:
                start = start_of(stream, self.init, self.on_sample)
                run = loop(Trajectory(start, began), self.limit)
            else:
                run = self._resumed(loop, stream, about, resume)
        run = dataclasses.replace(run, evaluations=stream.passes)
        return finished(run, stream, self.model, isinstance(self.init, str))

    def _resumed(
        self, loop: Loop, stream: Stream, about: dict[str, Any], resume: str | Path
    ) -> Run:
        found = read_checkpoint(resume)
        start = stream.template.structure.start
        changed = [key for key in about if about[key] != found.about.get(key)]
        if changed or not same_params(start, found.way.params):
            key = changed[0] if changed else "parameters"
            was = found.about.get(key, _shapes(found.way.params))
            now = about.get(key, _shapes(start))
            raise ValueError(
                f"{resume} is a checkpoint of another fit: its {key} was {was!r} and is "
                f"{now!r} now; resume with the model, the options and the data that it was "
                "written for."
            )
        current = stream.statistics(found.way.params, self.classification)
        if not abs(current.objective - found.objective) <= SAME * (1.0 + abs(found.objective)):
            raise ValueError(
                f"{resume} is a checkpoint of other data: the objective was "
                f"{found.objective:.6f} there and is {current.objective:.6f} at the same "
                "parameters; resume with the data that it was written for."
            )
        taken = len(found.way.history) - 1
        return loop(found.way, self.limit - taken, found.place(current))

    def _about(self, stream: Stream) -> dict[str, Any]:
        template = stream.template
        return {
            "model": getattr(self.model, "__name__", type(self.model).__name__),
            "objective": template.objective,
            "mode": "unconstrained" if template.unconstrained else "constrained",
            "accelerate": self.accelerate,
            "assignment": "hard" if self.classification else "soft",
            "number of rows": stream.rows,
            **_nodes(template),
        }


def start_of(stream: Stream, init: Init, on_sample: Callable[[Plan], Run]) -> dict[str, Tensor]:
    """Where the passes over all rows begin.

    Args:
        stream: The data.
        init: The user's wish for a start.
        on_sample: A whole fit of the sample.
    """
    if not isinstance(init, str):
        return starting_params(stream.template, init)
    run = on_sample(stream.template)
    if run.stop is StopReason.INTERRUPTED:
        raise KeyboardInterrupt
    return run.params


def finished(run: Run, stream: Stream, model: Model, by_share: bool) -> Run:
    """A run whose plan knows the model, the number of rows and the loader, and no rows.

    Args:
        run: The run on the stream's template.
        stream: The data.
        model: The model as the user gave it.
        by_share: Whether to number states by their share of the sampled rows.

    Raises:
        ValueError: If the model is another function of its parameters at the estimates than where
            it was read.
    """
    template = stream.template
    if run.stop is not StopReason.INTERRUPTED and (wrong := template.misread_sites(run.params)):
        raise ValueError(
            f"site '{wrong[0]}' is another function of the parameters at the estimates than where "
            "it was read, as a branch makes it, so its rows would be needed all at once; fit the "
            "model with fit(...)."
        )
    if by_share and not run.warning:
        run = dataclasses.replace(run, params=in_canonical_order(template, run.params))
    record = dataclasses.replace(
        record_of(run), rows=stream.rows, n_observations=stream.observations
    )
    positions = len(template.structure.arguments.args)
    arguments = Arguments((LeftOut(stream.rows),) * positions, dict(stream.source.options))
    passes = PassesOverPieces(stream, run.params, run.log_posterior)
    passes.end()
    plan = PlanWithoutData(model, arguments, record, IN_PIECES, _example(template), passes)
    return dataclasses.replace(run, plan=plan)


def _example(template: Plan) -> Plan | None:
    """The plan for a few rows, so that a fit can draw new ones."""
    rows = rows_of(template.structure.arguments)
    return with_some_rows(template, torch.arange(min(EXAMPLE, rows)))


def _shapes(params: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in params.items()}


def _nodes(template: Plan) -> dict[str, dict[str, int]]:
    """How many nodes each latent has, if some stand on any."""
    rules = {name: nodes.rule for name, nodes in template.structure.nodes.items()}
    nodes = {name: rule.nodes for name, rule in rules.items() if rule.nodes is not None}
    return {"nodes": nodes} if nodes else {}
