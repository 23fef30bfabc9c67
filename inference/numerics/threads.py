"""Loops on parts of the data, in as many threads as torch may have.

Threads of torch's own, which share out each operation, wait for each other after every one of them.
Where the data fall into parts these threads meet once at the end; in each of them torch computes
alone. So parts may be worth a thread each where single operations are not (``one_thread``).
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TypeVar

import torch

__all__ = ["bounds_of", "in_threads", "one_thread"]

Part = TypeVar("Part")
Result = TypeVar("Result")
_set_aside = ContextVar("set_aside", default=1)


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Has torch use one thread: to wake others takes longer than many a small product.

    Args:
        wanted: Whether it is to be so.
    """
    threads = torch.get_num_threads()
    if not wanted or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    before = _set_aside.set(threads)
    try:
        yield
    finally:
        _set_aside.reset(before)
        torch.set_num_threads(threads)


def _available() -> int:
    """How many threads may be at work, those that are set aside among them."""
    return max(torch.get_num_threads(), _set_aside.get())


def bounds_of(rows: int, unit: int, most: int) -> list[tuple[int, int]]:
    """The first row of each part and the one after its last: one part for each thread.

    Args:
        rows: How many rows there are.
        unit: All parts but the last are a multiple of so many.
        most: Parts there are at most, as each is to be worth a thread.
    """
    units = -(-rows // unit)
    parts = max(1, min(_available(), units, most))
    firsts = [unit * (units * i // parts) for i in range(parts)]
    return list(zip(firsts, [*firsts[1:], rows], strict=True))


def in_threads(function: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """The results of a function that releases the interpreter's lock, in the order of the parts.

    They do not depend on the number of threads, or on which of them took what. No thread records
    gradients.
    """
    parts, threads = list(parts), _available()
    if len(parts) < 2 or threads < 2:
        return [function(part) for part in parts]
    return list(_pool(threads).map(torch.no_grad()(function), parts))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that are all there, in each of which torch computes alone."""
    own, every = torch.get_num_threads(), threading.Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, "ember", initializer=_compute_alone)
    for _ in range(threads):
        pool.submit(every.wait)
    every.wait()
    torch.set_num_threads(own)  # what one thread sets is where all later ones begin
    return pool


def _compute_alone() -> None:
    torch.get_num_threads()  # a thread that has not asked would take what is set for all, later on
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # a child process inherits no threads, but would wait for them
    os.register_at_fork(after_in_child=_pool.cache_clear)
