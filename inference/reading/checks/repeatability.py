"""Whether a model is a function of its parameters: two runs at the same ones must say the same."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from ember.inference.numerics.shapes import unexpanded
from ember.inference.reading.trace import Trace, TraceNode, is_computed

__all__ = ["check_repeatable"]


ROUNDING = 1e-9  # relative; parallel sums on a device may come out in another order


def check_repeatable(first: Trace, second: Trace) -> None:
    """Refuses a model that draws random numbers which no site shows, or keeps a state.

    Args:
        first: A run with every parameter set and every latent site enumerated.
        second: Another run at the same parameters.

    Raises:
        ValueError: If a site differs between the two; the message names it.
    """
    here, there = first.nodes, second.nodes
    for name in (*here, *(name for name in there if name not in here)):
        if name not in here or name not in there:
            raise ValueError(_not_repeatable(f"site '{name}' is there in some runs only"))
        one, two = here[name], there[name]
        if one["type"] != "sample" or is_computed(one):
            continue
        if one["is_observed"] and not _same(one["value"], two["value"]):
            raise ValueError(_not_repeatable(f"the data of site '{name}' change from run to run"))
        if not all(map(_same, _weighted(one), _weighted(two))):
            kind = type(one["fn"]).__name__
            raise ValueError(
                _not_repeatable(f"the {kind} of site '{name}' changes from run to run")
            )


def _weighted(node: TraceNode) -> tuple[object, ...]:
    return node["fn"], node["mask"], node["scale"]


def _not_repeatable(what: str) -> str:
    return (
        f"{what} at the same parameters, so the model draws random numbers of its own "
        "(torch.randn, dropout) or keeps a state; draw them once outside and pass them as an "
        "argument, or make them a pyro.sample site (switch dropout off with module.eval())."
    )


def _same(one: object, two: object, above: tuple[object, ...] = ()) -> bool:
    """Whether two values are equal; distributions are so if all that they are made of is.

    A transform and its inverse are made of each other: ``above`` is what is being compared.
    """
    if one is two or any(one is outer for outer in above):
        return True
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return _equal(one, two)
    if isinstance(one, (Distribution, Transform)):
        return type(one) is type(two) and all(
            _same(*pair, (*above, one)) for pair in _parts(one, two)
        )
    if isinstance(one, (list, tuple)):
        return (
            isinstance(two, (list, tuple))
            and type(one) is type(two)
            and len(one) == len(two)
            and all(_same(*pair, above) for pair in zip(one, two, strict=True))
        )
    if isinstance(one, (bool, int, float)):
        return type(one) is type(two) and bool(one == two)
    return True  # nothing that could be compared


def _parts(one: object, two: object) -> Iterator[tuple[object, object]]:
    """What both are made of; either may have computed one more form of an argument already."""
    return ((value, vars(two)[key]) for key, value in vars(one).items() if key in vars(two))


def _equal(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype or one.layout != two.layout:
        return False
    if one.layout != torch.strided:
        return True
    if one.data_ptr() == two.data_ptr() and one.stride() == two.stride():
        return True
    one, two = unexpanded(one), unexpanded(two)
    if torch.equal(one, two):
        return True
    return one.is_floating_point() and torch.allclose(
        one, two, rtol=ROUNDING, atol=0.0, equal_nan=True
    )
