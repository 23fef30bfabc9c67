"""Whole numbers among what users pass: Python's, and those of numpy."""

from numbers import Integral
from typing import TypeGuard

__all__ = ["is_whole"]


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number; a truth value is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)
