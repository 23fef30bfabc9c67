"""Whether loops may be compiled: by numba, which is never required."""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["kept_on_disk", "use_compiled"]


F = TypeVar("F", bound=Callable[..., object])


def kept_on_disk(compiler: Callable[..., Any], function: F) -> F:
    """A function compiled, and kept for later processes where there is a folder to keep it in.

    Args:
        compiler: ``numba.njit`` with all of its options but ``cache``.
        function: The function.
    """
    try:
        made: F = compiler(cache=True)(function)
    except RuntimeError:
        made = compiler()(function)
    return made


def use_compiled() -> bool:
    """Whether compiled kernels may be used: numba is installed, and EMBER_COMPILED is not 0."""
    return os.environ.get("EMBER_COMPILED") != "0" and _is_installed()


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None
