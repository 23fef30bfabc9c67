"""Checks of the options of EM, SVI and select: each mistake is one sentence."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "OBJECTIVES",
    "check_anneal",
    "check_assignment",
    "check_choice",
    "check_count",
    "check_escape",
    "check_mode",
    "check_options",
]


OBJECTIVES = ("map", "mle")
INITS = ("kmeans", "points", "random", "hierarchical", "prior", "sticky", "windows")
ASSIGNMENTS = ("soft", "hard")
MODES = ("constrained", "unconstrained")
ESCAPES = (None, "split-merge")
ACCELERATIONS = ("auto", None, "squarem", "lbfgs", "anderson")


def check_choice(name: str, value: Any, allowed: tuple[Any, ...], otherwise: str = "") -> None:
    """Refuses a value that is not among the allowed ones, and lists those."""
    if not any(value is choice or value == choice for choice in allowed):
        listed = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name}={value!r} is unknown; choose one of {listed}{otherwise}.")


def check_options(
    model: Any,
    objective: Any,
    init: Any,
    restarts: Any,
    accelerate: Any,
    tol: Any,
    max_iter: Any,
    seed: Any,
    integrate: Any,
) -> None:
    """Refuses options of ``EM`` that mean nothing."""
    if not callable(model):
        raise TypeError(
            f"model must be a Pyro function that takes the data, not {type(model).__name__}; "
            "pass the function itself, for example EM(gaussian_mixture)."
        )
    check_choice("objective", objective, OBJECTIVES)
    check_choice("accelerate", accelerate, ACCELERATIONS)
    if not callable(init) and not isinstance(init, Mapping):
        check_choice("init", init, INITS, ", a dict of parameters or a callable")
    check_count("restarts", restarts)
    check_count("max_iter", max_iter)
    check_seed(seed)
    if integrate is not None and not isinstance(integrate, Mapping):
        raise TypeError(f"integrate={integrate!r} must be a dict: site name to method.")
    if not isinstance(tol, (int, float)) or not math.isfinite(tol) or tol < 0:
        raise ValueError(
            f"tol={tol!r} must be a number of at least 0, for example 1e-8 (0 runs max_iter "
            "iterations)."
        )


def check_count(name: str, value: Any) -> None:
    """Refuses anything but a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be a whole number.")
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1.")


def check_anneal(anneal: Any) -> None:
    """Refuses inverse temperatures outside (0, 1]."""
    if anneal is None:
        return
    numbers = list(anneal) if isinstance(anneal, Iterable) and not isinstance(anneal, str) else None
    if numbers is None or not all(isinstance(n, (int, float)) and 0 < n <= 1 for n in numbers):
        raise ValueError(
            f"anneal={anneal!r} must be a sequence of inverse temperatures in (0, 1], for example "
            "(0.1, 0.2, 0.4, 0.7)."
        )


def check_assignment(assignment: Any, accelerate: Any) -> None:
    """Refuses an unknown assignment, and acceleration of the hard one, which takes no small steps.

    Raises:
        ValueError: Saying what to choose.
    """
    check_choice("assignment", assignment, ASSIGNMENTS)
    if assignment == "hard" and accelerate not in (None, "auto"):
        raise ValueError(
            f"accelerate={accelerate!r} does not go with assignment='hard', whose steps are jumps; "
            "leave accelerate out."
        )


def check_mode(mode: Any, objective: str) -> None:
    """Checks in which coordinates the mode is sought.

    Raises:
        ValueError: If there is no such mode, or the objective has no prior density.
    """
    check_choice("mode", mode, MODES)
    if mode == "unconstrained" and objective != "map":
        raise ValueError(
            "mode='unconstrained' changes a posterior density and needs objective='map'; the "
            "maximum of a likelihood is the same in all coordinates."
        )


def check_escape(escape: Any, assignment: Any) -> None:
    """Refuses an unknown way out of a local optimum, and one of a hard assignment.

    Raises:
        ValueError: Saying what to choose.
    """
    check_choice("escape", escape, ESCAPES)
    if escape is not None and assignment == "hard":
        raise ValueError(
            f"escape={escape!r} does not go with assignment='hard': it weighs components by their "
            "posteriors; use restarts=... instead."
        )


def check_seed(seed: Any) -> None:
    """Refuses a seed that is no whole number."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TypeError(f"seed={seed!r} must be a whole number or None.")
