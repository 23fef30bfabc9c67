"""Whether loops may be compiled: by numba, which is never required."""

import functools
import importlib.util
import os

__all__ = ["use_compiled"]


def use_compiled() -> bool:
    """Whether compiled kernels may be used: numba is installed, and EMBER_COMPILED is not 0."""
    return os.environ.get("EMBER_COMPILED") != "0" and _is_installed()


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None
