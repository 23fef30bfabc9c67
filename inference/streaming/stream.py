"""Data in pieces as one E-step: surveyed once, then summed pass by pass, by whoever has a share."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.factors.tied import TieKey
from ember.inference.inputs.arguments import Arguments
from ember.inference.iteration.kept_plan import ReadingOptions
from ember.inference.iteration.loop import DataLost
from ember.inference.iteration.subsample import SAMPLE
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.streaming.pieces import Part, Source, check_pieces, in_template, part_of
from ember.inference.streaming.pooling import Moments, Pooled
from ember.inference.streaming.ranks import Ranks
from ember.inference.streaming.survey import (
    PASSES,
    Survey,
    depends_on_itself,
    joined,
    survey,
)
from ember.inference.streaming.workers import Job, parts_by_workers

__all__ = ["Stream", "stream_of"]


FAILED, LOST = 1.0, 2.0  # what may have become of a share: no value there, or no data


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

    def statistics(self, params: Params) -> Statistics:
        """The statistics of all pieces at ``params``: one pass.

        Raises:
            DataLost: If a piece cannot be read, here or elsewhere.
        """
        self.passes, self._steps = self.passes + 1, self._steps + 1
        name = f"pass {self.passes}"
        with torch.no_grad():
            log_prior = float(self.template.prior.log_prob(params))
        if self.ranks.count == 1:
            part = in_template(self.template, self._parts(params, name))
        else:
            part = self._of_all(params, name)
        if part.rows != self.rows:
            raise DataLost(
                f"the loader gave {part.rows} rows in this pass and {self.rows} in the first; it "
                "must give the same rows each time."
            )
        self.observations = part.observations
        return part.statistics(self.template, params, log_prior)

    def parts(self, params: Params, piece: Arguments) -> Part:
        """The statistics of one piece at ``params``."""
        return part_of(self.template, piece, params)

    def _parts(self, params: Params, name: str) -> Iterator[Part]:
        if self.executor is not None:
            if self._job is None:
                structure = self.template.structure
                self._job = Job(
                    structure.model, self.source.options, self.template.objective, structure.wishes
                )
            job, patience = self._job, self.patience
            yield from parts_by_workers(self.executor, job, self.source, params, patience, name)
            return
        for number, piece in self.source.pieces(name):
            try:
                yield part_of(self.template, piece, params, first=self._steps == 1)
            except ValueError as error:
                raise ValueError(f"piece {number} of the data: {error}") from error

    def _of_all(self, params: Params, name: str) -> Part:
        """The sum over all processes; what goes wrong in one of them goes wrong in all."""
        layout = [(key, self._shape(key)) for key in sorted(self.template.tied)]
        error: Exception | None = None
        try:
            own = in_template(self.template, self._parts(params, name))
            head = [0.0, float(own.rows), own.observations, own.log_likelihood]
            packed = [_packed(own, key, shape) for key, shape in layout]
            reaches = [_reach(own, key, self.template) for key, _ in layout]
        except Exception as caught:  # of any kind: the others wait
            error = caught
            head = [LOST if isinstance(error, DataLost) else FAILED, 0.0, 0.0, 0.0]
            packed = [_packed(None, key, shape) for key, shape in layout]
            reaches = [_reach(None, key, self.template) for key, _ in layout]
        vector = torch.cat(packed)
        found = self.ranks.stacked(torch.cat([torch.tensor(head).double(), vector, *reaches]))
        worst = float(found[:, 0].max())
        if worst > 0.0:
            messages = self.ranks.gathered("" if error is None else " ".join(str(error).split()))
            if error is not None:
                raise error
            said = "; ".join(f"process {i}: {m}" for i, m in enumerate(messages) if m)
            kind = DataLost if worst == LOST else RuntimeError
            raise kind(f"another process could not work on its share ({said})")
        total = found.sum(0)
        most = found[:, 4 + len(vector) :].amax(0)
        sums, place, reach_place = {}, 4, 0
        for key, shape in layout:
            tied, size = self.template.tied[key], shape.numel()
            if tied.reach is not None:
                span = tied.reach.numel()
                reach = most[reach_place : reach_place + span].reshape(tied.reach.shape)
                tied, reach_place = dataclasses.replace(tied, reach=reach), reach_place + span
            sums[key] = (tied, total[place : place + size].reshape(shape))
            place += size
        return Part(int(total[1]), float(total[2]), float(total[3]), sums)

    def _shape(self, key: TieKey) -> torch.Size:
        """The shape of the statistics of some tied factors: that of their natural parameters."""
        tied = self.template.tied[key]
        start = {name: p.start for name, p in self.template.structure.parameters.items()}
        with torch.no_grad():
            return tied.natural_parameters(start).shape


def _packed(part: Part | None, key: TieKey, shape: torch.Size) -> Tensor:
    if part is None or key not in part.sums:
        return torch.zeros(shape.numel(), dtype=torch.float64)
    tied, sums = part.sums[key]
    if sums.shape != shape:
        raise ValueError(
            f"the pieces of one process read {len(tied.cells)} combinations of parameters and "
            f"those of another {shape[0]}; give every process rows of all groups."
        )
    return sums.reshape(-1)


def _reach(part: Part | None, key: TieKey, template: Plan) -> Tensor:
    known = template.tied[key].reach
    if known is None:
        return torch.zeros(0, dtype=torch.float64)
    own = part.sums[key][0].reach if part is not None and key in part.sums else None
    return known.reshape(-1) if own is None else own.reshape(-1)


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
    source = Source(loader, shared, progress)
    whole: Survey | None = None
    moments: tuple[Moments, ...] = ()
    passes = 0
    for _ in range(PASSES):
        passes += 1
        whole = _surveyed(options, source, ranks, seed, moments)
        moments = whole.moments
        if not depends_on_itself(options, whole):
            break
    assert whole is not None
    model = Pooled(options.model, moments) if moments else options.model
    template = _template(options._replace(model=model), whole)
    check_pieces(template)
    sizes = whole.sizes
    return Stream(template, source, sum(sizes), len(sizes), ranks, executor, patience, passes)


def _surveyed(
    options: ReadingOptions, source: Source, ranks: Ranks, seed: int, known: Sequence[Moments]
) -> Survey:
    """The survey of the pieces of all processes."""
    found, failed = None, ""
    try:
        found = survey(options, source.pieces("survey"), SAMPLE, seed, known)
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


def _template(options: ReadingOptions, whole: Survey) -> Plan:
    """The plan for the sampled rows; for the first piece, if its rows are not to be told apart."""
    by_piece = options.read(whole.first.args, whole.first.kwargs)
    if by_piece.row is None or not len(whole.keys):
        return by_piece
    return options.read(whole.sample.args, whole.sample.kwargs)
