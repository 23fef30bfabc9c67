"""Sites written step by step (``state_0``, ``state_1``, ...) seen as one sequence."""

import re
from collections.abc import Container, Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["base_name", "members", "stack"]


_STEP = re.compile(r"^(.*[^_\d])_?(\d+)$")


def base_name(name: str) -> str | None:
    """The name without its step number, or None if it has none."""
    match = _STEP.match(name)
    return match.group(1) if match else None


def members(name: str, names: Iterable[str]) -> list[str]:
    """The steps of a sequence in order; empty if ``name`` is none."""
    steps = {}
    for candidate in names:
        match = _STEP.match(candidate)
        if match and match.group(1) == name:
            steps[int(match.group(2))] = candidate
    return [steps[i] for i in sorted(steps)]


def stack(
    values: Mapping[str, Tensor], leading: Mapping[str, int], steps: Container[str]
) -> dict[str, Tensor]:
    """Joins the steps of every sequence along a new dim, after ``leading[name]`` batch dims.

    Sites that are no ``steps`` of a chain, and steps that differ in shape, stay as they are.
    """
    out: dict[str, Tensor] = {}
    done: set[str] = set()
    for name, value in values.items():
        if name in done:
            continue
        base = base_name(name) if name in steps else None
        chain = [step for step in members(base, values) if step in steps] if base else []
        alike = len({values[step].shape for step in chain}) == 1
        if base is None or base in values or len(chain) < 2 or not alike:
            out[name] = value
            continue
        done.update(chain)
        out[base] = torch.stack([values[step] for step in chain], leading[name])
    return out
