"""Whether the likelihood of rows is the product of those of their parts, asked before any work.

Data in pieces rest on it. A model that computes something from the rows at hand (centred
covariates, the scale of a response, a neighbour's value), or has a factor outside the plate of its
rows, is another model for each piece.
"""

import dataclasses

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.rows import rows_of, taken
from ember.inference.plan.plan import Params, Plan
from ember.inference.queries.deterministic import deterministic_values
from ember.inference.reading.structure import signature_of
from ember.inference.streaming.parts import jittered_start
from ember.inference.streaming.pieces import plan_of_rows

__all__ = ["check_adds_up", "without_values_of_rows"]


MOST = 100  # rows of each part
APART = 1e-8  # difference of log likelihoods, relative, that is no rounding


def check_adds_up(template: Plan) -> None:
    """Refuses models whose likelihood is not that of independent rows.

    Args:
        template: The plan for some rows.

    Raises:
        ValueError: Naming a site where one stands outside the plate of the rows.
    """
    row, arguments = template.row, template.structure.arguments
    rows = rows_of(arguments)
    if row is None or rows < 2:
        return
    for name in template.structure.observed:
        if name in template.sites and row not in template.sites[name].layout.outer:
            raise ValueError(
                f"site '{name}' stands outside the plate of rows '{template.plate_names[row]}', so "
                "it would count once for each piece; leave it out, or fit the model with fit(...)."
            )
    half = min(rows // 2, MOST)
    every = torch.arange(2 * half)
    params = jittered_start(template)
    found = [_log_likelihood(template, each, params) for each in (every, *every.split(half))]
    whole, *parts = found
    if whole is None or not all(part is not None for part in parts):
        return  # the passes will say what is wrong
    left = abs(whole - sum(part for part in parts if part is not None))
    if left > APART * (1.0 + abs(whole)):
        raise ValueError(
            f"the log likelihood of {len(every)} rows is not the sum of those of their halves "
            f"(they differ by {left:.2g}): the model computes something from all rows at hand, "
            "such as the mean of a covariate; compute it beforehand and pass it as an argument, or "
            "fit the model with fit(...)."
        )


def without_values_of_rows(template: Plan) -> Plan:
    """The template, of which no computed value belongs to its own rows alone.

    Args:
        template: The plan for some rows.
    """
    structure, rows = template.structure, rows_of(template.structure.arguments)
    params = jittered_start(template)
    try:
        whole = deterministic_values(structure, params)
        if not whole or rows < 2:
            return template
        few = taken(structure.arguments, torch.arange(rows // 2))
        other = structure.with_arguments(few)
        other = dataclasses.replace(other, signature=signature_of(other.trace(params)))
        part = deterministic_values(other, params)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, IndexError):
        return template
    of_rows = {
        name
        for name, value in whole.items()
        if name not in part
        or part[name].shape != value.shape
        or not torch.allclose(value, part[name], rtol=0.0, atol=0.0, equal_nan=True)
    }
    if not of_rows:
        return template
    structure = dataclasses.replace(structure, of_rows=frozenset(of_rows))
    return dataclasses.replace(template, structure=structure)


def _log_likelihood(template: Plan, index: Tensor, params: Params) -> float | None:
    """The log likelihood of some rows; None where the model cannot be read or evaluated there."""
    few = taken(template.structure.arguments, index)
    try:
        plan, _ = plan_of_rows(template, few)
        with torch.no_grad():
            return float(LogEvidence.of(plan).statistics(params).log_likelihood)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, IndexError):
        return None
