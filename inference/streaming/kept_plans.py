"""Plans of pieces whose rows have maps of their own, kept from pass to pass while memory allows.

Such a plan takes some thirty runs of the model and holds about fifteen times the numbers of its
piece. A loader gives the piece anew in each pass, perhaps in another order, so a plan is known by a
digest of what the piece holds.
"""

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import Arguments
from ember.inference.plan.plan import Plan
from ember.inference.reading.fingerprint import digest_of

__all__ = ["KeptPlans"]


MOST = 2**28  # bytes that they take in all, about
ITSELF = 100_000  # of a plan without any numbers


class KeptPlans:
    """The plans of some pieces: the first that find room, as passes go round.

    Args:
        template: The plan for some rows; what is shared with it takes no room.
    """

    def __init__(self, template: Plan) -> None:
        self._plans: dict[bytes, Plan] = {}
        self._shared = set[int]()
        _size(template.__dict__, self._shared)
        self._room = MOST

    def plan_for(self, piece: Arguments) -> Plan | None:
        """The plan for a piece, if it has been kept."""
        key = digest_of(tuple(piece)) if self._plans else None
        return None if key is None else self._plans.get(key)

    def keep(self, piece: Arguments, plan: Plan) -> None:
        """Keeps the plan for a piece, if there is room."""
        if self._room <= 0:
            return
        LogEvidence.of(plan)  # is kept with it
        size, key = ITSELF + _size(plan.__dict__, set(self._shared)), digest_of(tuple(piece))
        if size <= self._room and key is not None:
            self._plans[key] = plan
            self._room -= size

    def clear(self) -> None:
        """Forgets all of them."""
        self._plans, self._room = {}, MOST


def _size(value: object, seen: set[int]) -> int:
    """The bytes of all arrays and tensors that hang on a value, but for those seen before."""
    total, waiting = 0, [value]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            storage = each.untyped_storage() if each.layout == torch.strided else None
            if storage is not None and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        elif isinstance(each, np.ndarray):
            total += each.nbytes if each.base is None else 0
        elif isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, (list, tuple, set, frozenset)):
            waiting.extend(each)
        elif hasattr(each, "__dict__") and not isinstance(each, (type, ModuleType)):
            waiting.append(each.__dict__)
    return total
