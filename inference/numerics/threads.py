"""Compiled loops on parts of the data, in as many threads as torch has."""

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["in_threads"]

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_threads(function: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """The results of a function that releases the interpreter's lock, in the order of the parts.

    They do not depend on the number of threads, or on which of them took what.
    """
    parts, threads = list(parts), torch.get_num_threads()
    if len(parts) < 2 or threads < 2:
        return [function(part) for part in parts]
    return list(_pool(threads).map(function, parts))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ember")


if hasattr(os, "register_at_fork"):  # a child process inherits no threads, but would wait for them
    os.register_at_fork(after_in_child=_pool.cache_clear)
