"""Pieces of the data on other processors: each worker reads a piece, and its answer comes back.

Any ``concurrent.futures`` executor of processes will do, such as ``ProcessPoolExecutor`` or that of
a Dask client. What is sent is the piece as the loader gives it, a few words if it is a ``Chunk`` of
a file, and the question: in an E-step the parameters, to which statistics are the answer.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, TimeoutError
from dataclasses import dataclass, field
from typing import TypeVar

from ember.inference.inputs.arguments import Model
from ember.inference.inputs.chunks import arguments_of
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.loop import DataLost
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.streaming.pieces import Source, answered

__all__ = ["Job", "answers_by_workers", "check_executor", "takes_work"]

T = TypeVar("T")

AHEAD = 64  # pieces that are under way at once
_templates: dict[str, Plan] = {}  # of the latest job that this process works for


@dataclass(frozen=True)
class Job:
    """What a worker needs to know beside the piece and the question.

    Attributes:
        model: The model, which must pickle: a function at the top level of a module does.
        options: The arguments that all pieces share.
        objective: "map" or "mle".
        wishes: The roles of continuous sites.
        key: Names the job, so that a worker reads the model once.
    """

    model: Model
    options: Mapping[str, object]
    objective: str
    wishes: Mapping[str, object]
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


def check_executor(executor: object) -> None:
    """Refuses what runs nothing, and threads, which share the state that a model runs in.

    Raises:
        TypeError: Naming its type.
    """
    if isinstance(executor, ThreadPoolExecutor):
        raise TypeError(
            "executor runs threads, but Pyro's handlers and parameter store are shared by all "
            "threads; use one of processes, such as ProcessPoolExecutor."
        )
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor is a {type(executor).__name__}, which has no submit method; pass an "
            "executor such as ProcessPoolExecutor(), or client.get_executor() of Dask."
        )


def takes_work(executor: Executor) -> bool:
    """Whether an executor has not been shut down, as one is after a ``with`` block."""
    try:
        executor.submit(int).cancel()
    except Exception:  # of any kind: executors differ
        return False
    return True


def answers_by_workers(
    executor: Executor,
    job: Job,
    source: Source,
    question: Callable[[Plan], T],
    patience: float,
    name: str,
) -> Iterator[T]:
    """What the plan of every piece answers to a question, in the order of the pieces.

    Args:
        executor: Runs the workers.
        job: What they need to know.
        source: The pieces.
        question: The question, which must pickle.
        patience: For how many seconds to wait for a piece.
        name: That of the bar.

    Raises:
        DataLost: If a piece cannot be read, or a worker dies or does not answer in time.
    """
    waiting: list[tuple[int, Future[T]]] = []
    try:
        for number, item in source.items(name):
            waiting.append((number, executor.submit(_answer, job, item, question)))
            if len(waiting) >= AHEAD:
                yield _result(*waiting.pop(0), patience)
        while waiting:
            yield _result(*waiting.pop(0), patience)
    except BrokenExecutor as error:
        raise DataLost(f"a worker has died, and the others with it: {error}") from error
    finally:
        for _, future in waiting:
            future.cancel()


def _result(number: int, future: Future[T], patience: float) -> T:
    try:
        return future.result(timeout=patience)
    except TimeoutError as error:
        raise DataLost(
            f"no worker has answered for piece {number} within {patience:g} seconds; see whether "
            "one hangs, or raise patience."
        ) from error
    except BrokenExecutor:
        raise
    except Exception as error:
        raise DataLost(f"piece {number} of the data failed in its worker: {error}") from error


def _answer(job: Job, item: object, question: Callable[[Plan], T]) -> T:
    """What a piece answers, in the process of a worker."""
    piece = arguments_of(item, job.options)
    with sheltered(0, piece):
        template = _templates.get(job.key)
        if template is None:
            _templates.clear()
            template = build_plan(job.model, piece, job.objective, job.wishes)
            _templates[job.key] = template
        return answered(template, piece, question)
