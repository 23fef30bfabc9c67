"""A fit as a file holds it: how it was reached, what its plan was read from, and its guide.

The model is not saved, as its code would have to be run to bring it back. The caller gives it
again, and its sites and shapes, and the densities at the estimates, must be those of the fit.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import Arguments, Model, prepare
from ember.inference.inputs.devices import device_of
from ember.inference.inputs.frames import Recipe, take
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.restarts.record import Starts
from ember.inference.iteration.run import MonteCarloErrors, Run
from ember.inference.numerics.adaptive import Adaptive
from ember.inference.numerics.monte_carlo import MonteCarlo
from ember.inference.numerics.quadrature import Quadrature
from ember.inference.optimality.certificate import Certificate
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.plan.without_data import (
    LeftOut,
    PlanRecord,
    PlanWithoutData,
    holds_left_out,
)
from ember.inference.queries.new_data import argument_names
from ember.inference.storage.arguments import encoded, given_again, without_data
from ember.inference.storage.encoding import Decoder, Encoder
from ember.inference.storage.guides import (
    GuideRecord,
    MissingGuide,
    copied,
    guide_of,
    record_of_guide,
)
from ember.inference.storage.plan_record import record_of
from ember.inference.storage.sealed_file import check_target, read_sealed, write_sealed

__all__ = ["read_fit", "read_notes", "write_fit"]


CLASSES = (
    *(StopReason, Starts, Certificate, Quadrature, Adaptive, MonteCarlo, MonteCarloErrors),
    *(PlanRecord, GuideRecord, LeftOut, Recipe),
)
SAME = 1e-6  # relative: densities that differ by less are the same, whatever rounding did


# -- writing ------------------------------------------------------------------------------------
def write_fit(run: Run, path: str | Path, data: bool = True, notes: object = None) -> None:
    """Writes a fit into a file; see ``Fit.save``.

    Args:
        run: The fit.
        path: The file.
        data: Whether the data go along.
        notes: Numbers and words to be kept beside it.
    """
    target, model, encoder = check_target(path), run.plan.structure.model, Encoder(CLASSES)
    with sheltered(data=run.plan.structure.arguments), torch.no_grad():
        record = record_of(run)
        fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
        del fields["plan"]
        if isinstance(recipe := fields.get("recipe"), Recipe):
            fields["recipe"] = recipe.bare()
        guide = _guide_record(fields.pop("guide", None), data)
        arguments = run.plan.structure.arguments
        if not data:
            arguments = without_data(arguments, record.rows, CLASSES)
        content = {
            "model": _name(model),
            "kind": type(run).__name__,
            "fit": encoder.encode(fields, ""),
            "arguments": encoded(encoder, arguments, argument_names(model)),
            "plan": encoder.encode(record, "plan"),
            "guide": encoder.encode(guide, "guide"),
            "notes": encoder.encode(notes, "notes"),
        }
    write_sealed(target, content, encoder.tensors)


def _guide_record(guide: Any, data: bool) -> GuideRecord | None:
    if guide is None:
        return None
    if data and guide.choice is None and not isinstance(guide, MissingGuide):
        warnings.warn(
            "the guide of the fit is of your own making and is not saved; all else is.",
            RuntimeWarning,
            stacklevel=4,
        )
    return record_of_guide(guide, data)


def _name(model: Model) -> str:
    return getattr(model, "__name__", type(model).__name__)


# -- reading ------------------------------------------------------------------------------------
class _Stored(NamedTuple):
    """What a file holds."""

    model: str
    kind: str
    fit: dict[str, Any]
    arguments: Arguments
    plan: PlanRecord
    guide: GuideRecord | None
    notes: Any


def read_notes(path: str | Path) -> tuple[str, Any]:
    """The name of the model that was fitted, and what was kept beside the fit.

    Raises:
        ValueError: As ``read_fit``.
    """
    stored = _stored(path)
    return stored.model, stored.notes


def read_fit(
    path: str | Path, model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The class of a fit in a file, and its fields, the plan read anew; see ``Fit.load``.

    Raises:
        ValueError: If the file is no fit, or of another version, has changed, or is one of another
            model.
    """
    stored = _stored(path)
    if not callable(model):
        raise TypeError(
            f"Fit.load takes the model that was fitted ('{stored.model}') after the path, not "
            f"{type(model).__name__}."
        )
    args, kwargs, recipe = take(model, args, kwargs)
    if recipe.names or recipe.formula is not None:
        stored.fit["recipe"] = recipe
    device = device_of((args, kwargs))
    arguments = given_again(stored.arguments, prepare(args, kwargs), argument_names(model))
    if device.type != "cpu":  # a file knows none: what it holds comes to the data that are given
        arguments = prepare(*arguments, device)
        stored.fit["params"] = {n: v.to(device) for n, v in stored.fit["params"].items()}
    if holds_left_out(arguments):
        bare = PlanWithoutData(model, arguments, stored.plan)
        return stored.kind, {**stored.fit, **_guide(stored, None), "plan": bare}
    if stored.guide is not None:
        model = copied(model)
    with sheltered(0, arguments):
        plan = _plan(path, stored, model, arguments)
        _check_densities(path, plan, stored.fit)
        return stored.kind, {**stored.fit, **_guide(stored, plan), "plan": plan}


def _guide(stored: _Stored, plan: Plan | None) -> dict[str, Any]:
    return {} if stored.guide is None else {"guide": guide_of(stored.guide, plan)}


def _stored(path: str | Path) -> _Stored:
    """The content of a file, once it is known to be that of a fit."""
    content, tensors = read_sealed(path)
    decoder = Decoder(tensors, CLASSES)
    expected = {field.name for field in dataclasses.fields(Run)} - {"plan"}
    try:
        found = _Stored(**{part: decoder.decode(content[part]) for part in _Stored._fields})
        found = found._replace(arguments=Arguments(*found.arguments))
        whole = (
            isinstance(found.model, str)
            and isinstance(found.kind, str)
            and expected <= found.fit.keys()
            and isinstance(found.arguments.kwargs, dict)
            and isinstance(found.plan, PlanRecord)
            and isinstance(found.guide, GuideRecord | None)
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{path} holds no fit that fit.save wrote.")
    return found


def _plan(path: str | Path, stored: _Stored, model: Model, arguments: Arguments) -> Plan:
    """The plan of the model, whose sites must be those of the fit."""
    record, here = stored.plan, f"{path} holds a fit of '{stored.model}', and the model"
    try:
        plan = build_plan(
            model,
            arguments,
            record.objective,
            dict(record.wishes),
            misread=record.misread,
            unconstrained=record.unconstrained,
        )
    except Exception as error:  # of any kind: another model may do anything with these arguments
        raise ValueError(
            f"{here} '{_name(model)}' cannot be read with its arguments "
            f"({' '.join(str(error).split()).rstrip('.')}); load it with the model that was fitted."
        ) from error
    old = {site[0]: tuple(site) for site in record.signature}
    new = {site.name: tuple(site) for site in plan.structure.signature}
    different = {
        site: _difference(old.get(site), new.get(site))
        for site in {**old, **new}
        if old.get(site) != new.get(site)
    }
    estimated, parameters = stored.fit["params"].keys(), plan.structure.parameters.keys()
    different.update(dict.fromkeys(estimated - parameters, "is no parameter there"))
    different.update(dict.fromkeys(parameters - estimated, "is a parameter there"))
    if different:
        site, how = next(iter(different.items()))
        raise ValueError(
            f"{here} '{_name(model)}' is another one: site '{site}' {how}; load it with the model, "
            "and the data, that were fitted."
        )
    return plan


def _difference(old: tuple[Any, ...] | None, new: tuple[Any, ...] | None) -> str:
    if old is None or new is None:
        return "is new" if old is None else "is missing"
    if old[1:3] != new[1:3]:
        return f"is a {new[2]} there and was a {old[2]}"
    if old[3] != new[3]:
        return f"has the shape {new[3]} there and had {old[3]}"
    return "stands in other plates there"


def _check_densities(path: str | Path, plan: Plan, fields: Mapping[str, Any]) -> None:
    """Looks whether the model says of the estimates what it said when they were found.

    Raises:
        ValueError: If it does not.
    """
    with torch.no_grad():
        likelihood = float(LogEvidence.of(plan)(fields["params"]))
        posterior = likelihood + float(plan.prior.log_prob(fields["params"]))
    for what, now in (("log likelihood", likelihood), ("log posterior", posterior)):
        before = fields[what.replace(" ", "_")]
        if math.isfinite(before) and not abs(now - before) <= SAME * (1.0 + abs(before)):
            raise ValueError(
                f"{path} holds a fit with the {what} {before:.6f}, and the model given has "
                f"{now:.6f} at its estimates: the model, or its data, are not those of the fit."
            )
