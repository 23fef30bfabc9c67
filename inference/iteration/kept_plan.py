"""The latest plan, kept for as long as the model says what it said when the plan was read.

The four steps by hand give the model's arguments each time. Reading a model takes many runs of it,
and seeing whether it, its options or its data have changed since takes one: its fingerprint is
compared (``reading/fingerprint.py``).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from ember.inference.inputs.arguments import Arguments
from ember.inference.plan.plan import Plan
from ember.inference.reading.fingerprint import fingerprint
from ember.inference.reading.roles import Model

__all__ = ["KeptPlan", "ReadingOptions"]


class ReadingOptions(NamedTuple):
    """What a plan depends on, the model's own arguments aside."""

    model: Model
    objective: str
    mode: str
    integrate: Mapping[str, Any]

    def same_as(self, others: "ReadingOptions") -> bool:
        """Whether they are the same; of the model it must be the same object."""
        return self.model is others.model and self[1:] == others[1:]


class KeptPlan:
    """The latest plan, with the options that it was read with and a fingerprint of the model."""

    def __init__(self) -> None:
        self._latest: tuple[Plan, ReadingOptions, bytes] | None = None

    def find(self, options: ReadingOptions, arguments: Arguments) -> Plan | None:
        """The plan, if reading the model anew would find the same."""
        if self._latest is None:
            return None
        plan, before, mark = self._latest
        if not options.same_as(before):
            return None
        now = dataclasses.replace(plan.structure, arguments=arguments)
        return plan if fingerprint(now) == mark else None

    def keep(self, plan: Plan, options: ReadingOptions) -> None:
        """Puts a plan in the place of the latest one; one of no fingerprint is not kept."""
        mark = fingerprint(plan.structure)
        self._latest = None if mark is None else (plan, options, mark)
