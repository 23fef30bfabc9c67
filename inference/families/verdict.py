"""What is wrong with coefficients that have no finite maximiser inside their range."""

from enum import Enum
from typing import NamedTuple

from torch import Tensor

__all__ = ["Flaw", "Verdict"]


class Flaw(Enum):
    """Why coefficients have no finite maximiser inside the range of their parameter."""

    EMPTIED = "has emptied: no observation belongs to it"
    COLLAPSED = (
        "has collapsed: its variance has shrunk to (almost) nothing, where the likelihood has no "
        "bound"
    )
    SINGULAR = (
        "has collapsed: in a direction its variance has shrunk to (almost) nothing, where the "
        "likelihood has no bound (columns that determine each other do that to every component)"
    )
    UNBOUNDED = "has a prior density without bound (concentration below 1) and too few observations"


class Verdict(NamedTuple):
    """Which rows have no maximiser: those that nothing was said about, and those with a flaw."""

    empty: Tensor
    flawed: Tensor
    flaw: Flaw
