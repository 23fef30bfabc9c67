"""Further cases of what other cases of a test hold as well: ``make thorough`` runs them too."""

from collections.abc import Collection
from typing import Any

import pytest

__all__ = ["further", "with_further"]


def further(*values: Any) -> list[Any]:
    """Parameters of a test that are left out unless asked for."""
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]


def with_further(values: Collection[Any], names: Collection[Any]) -> list[Any]:
    """All values, some of them left out unless asked for."""
    left = [value for value in values if value in names]
    return [*(value for value in values if value not in left), *further(*left)]
