"""Reading a model into a plan, and keeping the latest plan for as long as it is right.

The four steps by hand give the model's arguments each time. Reading a model takes many runs of it,
and seeing whether it, its options or its data have changed since takes one: its fingerprint is
compared (``reading/fingerprint.py``).
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import Arguments, Model, prepare
from ember.inference.inputs.options import OBJECTIVES, check_choice
from ember.inference.inputs.rows import rows_of, spread, taken
from ember.inference.iteration.checks import (
    check_local_parameters,
    integrable,
    local_parameters,
    warn_of_cuts,
    warn_of_unlearnt,
)
from ember.inference.maximisation.updates import check_settable
from ember.inference.plan.building import build_plan
from ember.inference.plan.columns import check_codes
from ember.inference.plan.plan import Plan
from ember.inference.plan.rebinding import rebound
from ember.inference.reading.fingerprint import fingerprint
from ember.inference.reading.gaussian.reads import NotIntegrable

__all__ = ["KeptPlan", "ReadingOptions", "data_of"]


MANY_ROWS, MANY_NUMBERS = 8_000, 200_000  # of the data; fewer are read at once
FEW_ROWS = 1_999  # on which a model of many is read


class ReadingOptions(NamedTuple):
    """What a plan depends on, the model's own arguments aside; see ``EM`` for each."""

    model: Model
    objective: str
    mode: str
    integrate: Mapping[str, Any]

    def same_as(self, others: "ReadingOptions") -> bool:
        """Whether they are the same; of the model it must be the same object."""
        return self.model is others.model and self[1:] == others[1:]

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], misread: Collection[str] = ()
    ) -> Plan:
        """The plan for a model's arguments, read from the model as it is now.

        Args:
            args: The arguments.
            kwargs: The keyword arguments.
            misread: Sites that maps were found not to describe.

        Raises:
            ValueError: If the model or its data cannot be handled; the message names the site.
        """
        check_choice("objective", self.objective, OBJECTIVES)
        arguments = prepare(args, kwargs)
        plan = None if misread else self._by_few_rows(arguments)
        if plan is None:
            plan = self._whole(arguments, misread)
        check_codes(plan, (*args, *kwargs.values()))
        return plan

    def _by_few_rows(self, arguments: Arguments) -> Plan | None:
        """The plan by a reading of a few rows, where they are many and all alike to the model."""
        rows = rows_of(arguments)
        if rows < MANY_ROWS or sum(t.numel() for t in arguments.tensors) < MANY_NUMBERS:
            return None
        try:
            with warnings.catch_warnings(record=True) as told:
                few = self._whole(taken(arguments, spread(rows, FEW_ROWS)), ())
        except Exception:  # of whatever kind: what is wrong with all rows is said by all of them
            return None
        plan = rebound(few, arguments)
        for warning in told if plan is not None else ():
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        return plan

    def _whole(self, arguments: Arguments, misread: Collection[str]) -> Plan:
        """The plan by a reading of all rows."""
        read = functools.partial(
            build_plan,
            self.model,
            arguments,
            objective=self.objective,
            misread=misread,
            unconstrained=self.mode == "unconstrained",
        )
        plan = read(integrate=self.integrate)
        LogEvidence.of(plan)  # says now if its latents cannot be summed out
        if local := local_parameters(plan, self.integrate):
            plan = self._with_local(plan, local, read)
        check_settable(plan)
        warn_of_cuts(plan, 4)
        warn_of_unlearnt(plan, self.integrate, 4)
        return plan

    def _with_local(self, plan: Plan, local: Mapping[str, str], read: Callable[..., Plan]) -> Plan:
        """The plan with the parameters of single rows integrated, where that is possible exactly.

        Raises:
            ValueError: Naming one of them and what it shares a factor with.
        """
        why = "it has neither a Normal nor a conjugate prior, so it cannot be integrated exactly"
        how = integrable(plan, local)
        if how is not None:
            try:
                found = read(integrate={**self.integrate, **how})
            except NotIntegrable as error:
                why = f"it cannot be integrated exactly ({error})"
            else:
                reasons = {
                    name: f"it has one value for each row and shares a factor with '{other}'"
                    for name, other in local.items()
                }
                structure = found.structure
                reasons.update(structure.found)
                return dataclasses.replace(
                    found, structure=dataclasses.replace(structure, found=reasons)
                )
        check_local_parameters(plan, local, why)
        return plan


class KeptPlan:
    """The latest plan, with the options that it was read with and a fingerprint of the model."""

    def __init__(self) -> None:
        self._latest: tuple[Plan, ReadingOptions, bytes] | None = None

    def plan_for(
        self, options: ReadingOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Plan:
        """A plan given as the only argument, or the latest one if it is still right, or a new one.

        Raises:
            ValueError: If a given plan is of another model or objective; as ``read`` otherwise.
        """
        if len(args) == 1 and isinstance(args[0], Plan) and not kwargs:
            return _checked(args[0], options)
        if self._latest is not None:
            plan, before, mark = self._latest
            now = dataclasses.replace(plan.structure, arguments=prepare(args, kwargs))
            if options.same_as(before) and fingerprint(now) == mark:
                return plan
        plan = options.read(args, kwargs)
        self.keep(plan, options)
        return plan

    def keep(self, plan: Plan, options: ReadingOptions) -> None:
        """Puts a plan in the place of the latest one, if its model has a fingerprint."""
        mark = fingerprint(plan.structure)
        self._latest = None if mark is None else (plan, options, mark)


def data_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What the arguments hold, or what those hold that a plan was read for."""
    if args and isinstance(args[0], Plan):
        return tuple(args[0].structure.arguments)
    return args, kwargs


def _checked(plan: Plan, options: ReadingOptions) -> Plan:
    same_mode = plan.unconstrained == (options.mode == "unconstrained")
    if plan.structure.model is options.model and plan.objective == options.objective and same_mode:
        return plan
    raise ValueError(
        "the plan was read for another model or objective than this EM has; make it anew with "
        "em.plan(...)."
    )
