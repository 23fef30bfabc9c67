"""Pieces of the data, one in memory at a time, and the plan for each.

The pieces are read anew in every pass, here or by workers. The model is not: its plan for the
sampled rows is bound to those of each piece (``plan/rebinding.py``); where rows have maps of their
own, such as covariates, it is read for every piece, once if there is room (``kept_plans.py``).
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import TypeVar

from pyro import validation_enabled
from tqdm.auto import tqdm

from ember.inference.inputs.arguments import Arguments
from ember.inference.inputs.chunks import arguments_of
from ember.inference.inputs.frames import in_order_of, without_rows
from ember.inference.inputs.progress import is_notebook, is_terminal
from ember.inference.inputs.shelter import threads_for
from ember.inference.iteration.loop import DataLost
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.plan.rebinding import rebound
from ember.inference.streaming.kept_plans import KeptPlans
from ember.inference.streaming.parts import check_second_order

__all__ = ["Source", "answered", "check_pieces", "plan_of_piece", "plan_of_rows"]

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """The pieces of a loader, pass by pass.

    Attributes:
        loader: What is iterated over in each pass.
        options: The arguments of the model that all pieces share.
        progress: Whether to show a bar over the pieces of a pass.
        first: The first piece, tables without their rows.
    """

    loader: Iterable[object]
    options: Mapping[str, object] = field(default_factory=dict)
    progress: bool = False
    first: list[object] = field(default_factory=list, repr=False)

    def items(self, name: str) -> Iterator[tuple[int, object]]:
        """The pieces as the loader gives them, numbered from 1.

        Raises:
            DataLost: If the loader fails.
        """
        shown = self.progress and (is_terminal() or is_notebook())
        total = len(self.loader) if isinstance(self.loader, Sized) else None
        number, pieces = 0, itertools.chain.from_iterable([self.loader])  # begun at the first
        with tqdm(total=total, desc=name, leave=False, disable=not shown) as bar:
            while True:
                try:
                    item = next(pieces)
                except StopIteration:
                    return
                except Exception as error:
                    raise DataLost(f"the loader failed at piece {number + 1}: {error}") from error
                number += 1
                if number == 1:  # before the fit, which a file that is lost later must not cost
                    self.first[:] = [_read(number, functools.partial(without_rows, item))]
                try:
                    item = in_order_of(self.first[0], item)
                except ValueError as error:
                    raise ValueError(f"piece {number} of the data: {error}") from error
                yield number, item
                bar.update()

    def pieces(self, name: str = "pieces") -> Iterator[tuple[int, Arguments]]:
        """The pieces as arguments of the model, numbered from 1.

        Raises:
            DataLost: If one cannot be read.
        """
        for number, item in self.items(name):
            yield number, _read(number, functools.partial(arguments_of, item, self.options))


def _read(number: int, reading: Callable[[], T]) -> T:
    """What is read of a piece.

    Raises:
        DataLost: If it cannot be read.
    """
    try:
        return reading()
    except Exception as error:  # of any kind: loaders and files differ
        raise DataLost(f"piece {number} of the data cannot be read: {error}") from error


def check_pieces(template: Plan) -> None:
    """Refuses models whose data cannot come in pieces.

    Args:
        template: The plan for some rows.

    Raises:
        ValueError: Naming a site that needs all rows at once.
    """
    if template.units:
        name = next(iter(template.structure.units))
        raise ValueError(
            f"latent '{name}' is integrated unit by unit, on nodes of its own, which needs all "
            "rows at once; fit the model with fit(...)."
        )
    check_second_order(template)
    if template.row is not None:
        return
    latents = [*template.structure.gaussian, *template.structure.conjugate]
    if latents or not (template.chains or template.structure.steps):
        alone = [name for name in template.structure.observed if not template.sites[name].plates]
        several = len(alone) < len(template.structure.observed)
        shared = "model has no plate of rows"
        if latents:
            shared = f"latent '{latents[0]}' is shared by several rows"
        elif alone and several:
            shared = f"observed site '{alone[0]}' stands outside the plate of the rows"
        raise ValueError(
            f"the data cannot come in pieces, because the {shared}: fit the model with fit(...)."
        )


def plan_of_piece(template: Plan, piece: Arguments, first: bool = False) -> Plan:
    """The plan for the rows of a piece, with the prior of the template.

    Args:
        template: The plan for some rows.
        piece: The arguments with the piece's rows.
        first: Whether the piece is seen for the first time: then its prior must be the template's.

    Raises:
        ValueError: If the model takes the piece for something else than other rows.
    """
    kept = template.once(KeptPlans)
    plan = kept.plan_for(piece)
    if plan is None:
        plan, is_read = plan_of_rows(template, piece, keep_prior=not first)
        if is_read:
            kept.keep(piece, plan)
    # A piece may lack a site of the others, such as that of labels which none of its rows has.
    ties, known = template.ties, set(template.ties.values())
    changed = [n for n, key in plan.ties.items() if key not in known or ties.get(n, key) != key]
    if changed:
        raise ValueError(
            f"site '{min(changed)}' reads other parameters there than in the rows that the model "
            "was read on; give every piece the same columns, levels and options."
        )
    if first and plan.priors is not template.priors:
        _check_prior(plan, template)
    return plan


def _check_prior(plan: Plan, template: Plan) -> None:
    at = template.structure.start
    for name, prior in plan.priors.items():
        densities = [prior.site.density, template.priors[name].site.density]
        each = [float(d.log_prob(at, at[name]).sum()) for d in densities if d is not None]
        if len(each) == 2 and abs(each[0] - each[1]) > 1e-9 * (1.0 + abs(each[0])):
            raise ValueError(
                f"the prior of '{name}' depends on the rows of the piece; state it, for instance "
                "with prior={...}, or use objective='mle'."
            )


def plan_of_rows(template: Plan, rows: Arguments, keep_prior: bool = True) -> tuple[Plan, bool]:
    """The plan for other rows than those of the template; and whether the model was read for it.

    Args:
        template: The plan for some rows.
        rows: The arguments with the other rows.
        keep_prior: Whether the prior is the template's, where the model is not read.

    Raises:
        ValueError: If the model cannot be read for them.
    """
    with validation_enabled(False):  # a piece may have fewer rows than a fit needs
        plan = rebound(template, rows, keep_prior=keep_prior, validated=False)
        if plan is not None:
            return plan, False
        structure = template.structure
        plan = build_plan(
            structure.model,
            rows,
            template.objective,
            structure.wishes,
            misread=template.opaque.misread,
            unconstrained=template.unconstrained,
        )
    return plan, True


def answered(
    template: Plan, piece: Arguments, question: Callable[[Plan], T], first: bool = False
) -> T:
    """What one piece answers to a question about the plan for its rows."""
    with threads_for(piece.tensors):
        return question(plan_of_piece(template, piece, first))
