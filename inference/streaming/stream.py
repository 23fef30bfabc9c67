"""Data in pieces as one E-step: surveyed once, then summed pass by pass, by whoever has a share."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from ember.inference.inputs.arguments import Arguments
from ember.inference.iteration.kept_plan import ReadingOptions
from ember.inference.iteration.loop import DataLost
from ember.inference.iteration.subsample import SAMPLE
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.streaming.adding import check_adds_up, without_values_of_rows
from ember.inference.streaming.gathering import gathered_answer, gathered_parts
from ember.inference.streaming.parts import Part, PartsAt, Total
from ember.inference.streaming.pieces import Source, answered, check_pieces
from ember.inference.streaming.pooling import Moments, Pooled
from ember.inference.streaming.ranks import Ranks
from ember.inference.streaming.survey import (
    PASSES,
    FirstPlan,
    Survey,
    depends_on_itself,
    joined,
    survey,
)
from ember.inference.streaming.workers import Job, answers_by_workers

__all__ = ["Stream", "stream_of"]


T = TypeVar("T")


@dataclass(eq=False)
class Stream:
    """The E-step over all pieces.

    Attributes:
        template: The plan for the sampled rows, with the prior of all rows.
        source: The pieces of this process.
        rows: How many rows all processes have.
        pieces: How many pieces these are.
        ranks: The processes.
        executor: Runs workers, if there are any.
        patience: For how many seconds to wait for a worker.
        passes: How many passes over the data there were.
        observations: How many observations all rows are; known after the first E-step.
    """

    template: Plan
    source: Source
    rows: int
    pieces: int
    ranks: Ranks
    executor: Executor | None = None
    patience: float = 600.0
    passes: int = 1
    observations: float = math.nan
    _job: Job | None = field(default=None, init=False)
    _steps: int = field(default=0, init=False)

    def statistics(self, params: Params, maximum: bool = False) -> Statistics:
        """The statistics of all pieces at ``params``: one pass.

        Args:
            params: The parameters.
            maximum: Whether the latents take their most probable joint value.

        Raises:
            DataLost: If a piece cannot be read, here or elsewhere.
        """
        return self.statistics_at([params], maximum)[0]

    def statistics_at(
        self, points: Sequence[Params], maximum: bool = False, curved: bool = True
    ) -> list[Statistics]:
        """The statistics of all pieces at each of some parameters: one pass for all of them.

        Without curvature, sites that have no sufficient statistics tell the score alone.
        """
        self.passes, self._steps = self.passes + 1, self._steps + 1
        fixed = [{name: v.detach().clone() for name, v in params.items()} for params in points]
        with torch.no_grad():
            log_priors = [float(self.template.prior.log_prob(params)) for params in fixed]
        question = PartsAt(fixed, maximum, curved)
        templates = [placed(self.template, params) for params in fixed]

        def own() -> list[Part]:
            totals = [Total(template) for template in templates]
            for parts in self._answers(question, f"pass {self.passes}"):
                for total, part in zip(totals, parts, strict=True):
                    total.add(part)
            return [total.part for total in totals]

        if self.ranks.count == 1:
            found = own()
        else:
            found = gathered_parts(self.ranks, templates, own, fixed)
        if found[0].rows != self.rows:
            raise DataLost(
                f"the loader gave {found[0].rows} rows in this pass and {self.rows} in the first; "
                "it must give the same rows each time."
            )
        self.observations = found[0].observations
        return [
            part.statistics(self.template, params, log_prior)
            for part, params, log_prior in zip(found, fixed, log_priors, strict=True)
        ]

    def total(self, question: Callable[[Plan], T], add: Callable[[T, T], T]) -> T:
        """What the plans of all pieces answer to a question, added up: one pass.

        Raises:
            DataLost: If a piece cannot be read, here or elsewhere.
        """
        self.passes += 1

        def own() -> T:
            return functools.reduce(add, self._answers(question, f"pass {self.passes}"))

        return own() if self.ranks.count == 1 else gathered_answer(self.ranks, own, add)

    def parts(self, params: Params, piece: Arguments) -> Part:
        """The statistics of one piece at ``params``."""
        return answered(self.template, piece, PartsAt([params]))[0]

    def _answers(self, question: Callable[[Plan], T], name: str) -> Iterator[T]:
        """What the plan of each piece of this process answers to a question."""
        if self.executor is not None:
            if self._job is None:
                structure = self.template.structure
                self._job = Job(
                    structure.model, self.source.options, self.template.objective, structure.wishes
                )
            job, patience = self._job, self.patience
            yield from answers_by_workers(self.executor, job, self.source, question, patience, name)
            return
        for number, piece in self.source.pieces(name):
            try:
                yield answered(self.template, piece, question, first=self._steps == 1)
            except ValueError as error:
                raise ValueError(f"piece {number} of the data: {error}") from error


def stream_of(
    options: ReadingOptions,
    loader: Iterable[object],
    shared: Mapping[str, object],
    ranks: Ranks,
    executor: Executor | None,
    patience: float,
    seed: int,
    progress: bool,
) -> Stream:
    """Surveys the pieces, and reads the model on a sample of their rows.

    Args:
        options: How the model is to be read.
        loader: The pieces.
        shared: The arguments of the model that all pieces share.
        ranks: The processes, each with its own loader.
        executor: Runs workers.
        patience: For how many seconds to wait for a worker.
        seed: For the sample.
        progress: Whether to show a bar over the pieces.

    Raises:
        ValueError: If the model or a piece cannot be handled; the message names the site.
        DataLost: If a piece cannot be read.
    """
    source, read = Source(loader, shared, progress), FirstPlan(options)
    whole: Survey | None = None
    moments: tuple[Moments, ...] = ()
    passes = 0
    for _ in range(PASSES):
        passes += 1
        whole = _surveyed(read, source, ranks, seed, moments)
        moments = whole.moments
        if not depends_on_itself(read, whole):
            break
    assert whole is not None
    model = Pooled(options.model, moments) if moments else options.model
    template = _template(options._replace(model=model), whole, read(whole.first).row is None)
    check_pieces(template)
    check_adds_up(template)
    template = without_values_of_rows(template)
    sizes = whole.sizes
    return Stream(template, source, sum(sizes), len(sizes), ranks, executor, patience, passes)


def _surveyed(
    read: FirstPlan, source: Source, ranks: Ranks, seed: int, known: Sequence[Moments]
) -> Survey:
    """The survey of the pieces of all processes."""
    found, failed = None, ""
    try:
        found = survey(read, source.pieces("survey"), SAMPLE, seed, known)
    except (DataLost, ValueError, TypeError) as error:
        if ranks.count == 1:
            raise
        failed = " ".join(str(error).split())
    if found is not None and ranks.rank:  # rows need not travel
        found = dataclasses.replace(found, first=Arguments((), {}))
    every = ranks.gathered((found, failed))
    said = "; ".join(f"process {i}: {why}" for i, (_, why) in enumerate(every) if why)
    if said:
        raise ValueError(f"the data cannot be read ({said})")
    return joined([each for each, _ in every if each is not None], SAMPLE)


def _template(options: ReadingOptions, whole: Survey, is_one_unit: bool) -> Plan:
    """The plan for the sampled rows; for the first piece, if its rows are not to be told apart."""
    rows = whole.first if is_one_unit or not len(whole.keys) else whole.sample
    return options.read(rows.args, rows.kwargs)
