"""The options of EM and SVI: what each may be, and which do not go together.

Each mistake is one sentence. To add an option: a line in the table of its method; a constraint is a
function of the option's name and value that raises.
"""

import math
from collections.abc import Callable, Iterable, Mapping

from pyro.optim import PyroOptim

from ember.inference.numerics.whole_numbers import is_whole

__all__ = [
    "OBJECTIVES",
    "check_choice",
    "check_count",
    "check_em_options",
    "check_seed",
    "check_svi_options",
    "check_vbem_options",
]


OBJECTIVES = ("map", "mle")
INITS = ("kmeans", "points", "random", "hierarchical", "prior", "sticky", "windows")
SVI_INITS = ("kmeans", "random")
ASSIGNMENTS = ("soft", "hard")
MODES = ("constrained", "unconstrained")
ESCAPES = (None, "split-merge")
SEEDS = 2**64
ACCELERATIONS = ("auto", None, "squarem", "lbfgs", "anderson")
Constraint = Callable[[str, object], None]
Constraints = Mapping[str, Constraint]


def check_em_options(**options: object) -> None:
    """Refuses options of ``EM`` that mean nothing, alone or together.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option has an unknown value, or does not go with another.
    """
    _check_each(EM_CONSTRAINTS, options)
    _check_assignment(options["assignment"], options["accelerate"])
    _check_escape(options["escape"], options["assignment"])
    _check_mode(options["mode"], options["objective"])


def check_vbem_options(**options: object) -> None:
    """Refuses options of ``VBEM`` that mean nothing.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option has an unknown value.
    """
    _check_each({**EM_CONSTRAINTS, "model": _model_of("VBEM")}, options)


def check_svi_options(**options: object) -> None:
    """Refuses options of ``SVI`` that mean nothing, alone or together.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option has an unknown value, or does not go with another.
    """
    _check_each(SVI_CONSTRAINTS, options)
    _check_learning_rate(options["learning_rate"], options["optim"])


def _check_each(constraints: Constraints, options: Mapping[str, object]) -> None:
    for name, value in options.items():
        constraints[name](name, value)


# -- constraints of one option ------------------------------------------------------------------


def check_choice(
    name: str, value: object, allowed: tuple[object, ...], otherwise: str = ""
) -> None:
    """Refuses a value that is not among the allowed ones, and lists those."""
    if not any(value is choice or value == choice for choice in allowed):
        listed = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name}={value!r} is unknown; choose one of {listed}{otherwise}.")


def check_count(name: str, value: object) -> None:
    """Refuses anything but a whole number of at least 1."""
    if not is_whole(value):
        raise TypeError(f"{name}={value!r} must be a whole number.")
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1.")


def _one_of(allowed: tuple[object, ...]) -> Constraint:
    return lambda name, value: check_choice(name, value, allowed)


def _model_of(method: str) -> Constraint:
    def check(name: str, value: object) -> None:
        if not callable(value):
            raise TypeError(
                f"{name} must be a Pyro function that takes the data, not {type(value).__name__}; "
                f"pass the function itself, for example {method}(gaussian_mixture)."
            )

    return check


def _start_of(kinds: tuple[str, ...]) -> Constraint:
    def check(name: str, value: object) -> None:
        if not callable(value) and not isinstance(value, Mapping):
            check_choice(name, value, kinds, ", a dict of parameters or a callable")

    return check


def _tolerance(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"{name}={value!r} must be a number of at least 0, for example 1e-8 (0 runs max_iter "
            "iterations)."
        )


def check_seed(name: str, value: object) -> None:
    """Refuses anything but None and whole numbers that a generator takes."""
    if value is None:
        return
    if not is_whole(value):
        raise TypeError(f"{name}={value!r} must be a whole number or None.")
    if not -SEEDS <= 2 * value < 2 * SEEDS:
        raise ValueError(f"{name}={value} is too large; choose one of at most 64 bits.")


def _methods_by_site(name: str, value: object) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name}={value!r} must be a dict: site name to method.")


def _inverse_temperatures(name: str, value: object) -> None:
    if value is None:
        return
    numbers = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else None
    if numbers is None or not all(isinstance(n, (int, float)) and 0 < n <= 1 for n in numbers):
        raise ValueError(
            f"{name}={value!r} must be a sequence of inverse temperatures in (0, 1], for example "
            "(0.1, 0.2, 0.4, 0.7)."
        )


def _optimiser(name: str, value: object) -> None:
    if value is not None and not isinstance(value, PyroOptim):
        raise TypeError(
            f"{name} must be an optimiser of pyro.optim, not {type(value).__name__}; for example "
            "pyro.optim.ClippedAdam({'lr': 0.01})."
        )


def _learning_rate(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r} must be a number.")
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be positive, for example 0.05.")


EM_CONSTRAINTS: Constraints = {
    "model": _model_of("EM"),
    "objective": _one_of(OBJECTIVES),
    "integrate": _methods_by_site,
    "init": _start_of(INITS),
    "restarts": check_count,
    "anneal": _inverse_temperatures,
    "assignment": _one_of(ASSIGNMENTS),
    "mode": _one_of(MODES),
    "escape": _one_of(ESCAPES),
    "accelerate": _one_of(ACCELERATIONS),
    "tol": _tolerance,
    "max_iter": check_count,
    "seed": check_seed,
}
SVI_CONSTRAINTS: Constraints = {
    "model": _model_of("SVI"),
    "steps": check_count,
    "optim": _optimiser,
    "init": _start_of(SVI_INITS),
    "learning_rate": _learning_rate,
    "particles": check_count,
    "integrate": _methods_by_site,
    "seed": check_seed,
}


# -- options that do not go together ------------------------------------------------------------


def _check_assignment(assignment: object, accelerate: object) -> None:
    """The hard assignment takes no small steps that could be accelerated."""
    if assignment == "hard" and accelerate not in (None, "auto"):
        raise ValueError(
            f"accelerate={accelerate!r} does not go with assignment='hard', whose steps are jumps; "
            "leave accelerate out."
        )


def _check_escape(escape: object, assignment: object) -> None:
    """The way out of a local optimum needs posteriors, which the hard assignment has not."""
    if escape is not None and assignment == "hard":
        raise ValueError(
            f"escape={escape!r} does not go with assignment='hard': it weighs components by their "
            "posteriors; use restarts=... instead."
        )


def _check_mode(mode: object, objective: object) -> None:
    """The mode of a density depends on the coordinates; the maximum of a likelihood does not."""
    if mode == "unconstrained" and objective != "map":
        raise ValueError(
            "mode='unconstrained' changes a posterior density and needs objective='map'; the "
            "maximum of a likelihood is the same in all coordinates."
        )


def _check_learning_rate(learning_rate: object, optim: object) -> None:
    """An optimiser of the user's own brings its own learning rate."""
    if learning_rate is not None and optim is not None:
        raise ValueError(
            "learning_rate belongs to the default optimiser; give it to optim instead."
        )
