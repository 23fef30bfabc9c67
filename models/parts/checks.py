"""Checks of a model's arguments: one clear sentence for each mistake, before any work is done.

What `x` *is* (type, shape, values) is always checked. Whether there is *enough* of it to estimate
from is checked only while Pyro's own validation is on (`pyro.validation_enabled()`, the default):
switch it off to apply a model whose parameters are known to a single row.
"""

from collections.abc import Sequence
from numbers import Integral

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.missing import is_finite

__all__ = [
    "ONE_COLUMN",
    "ONE_ITEM",
    "check_codes",
    "check_counts",
    "check_enough",
    "check_floats",
    "check_option",
    "check_size",
    "check_tensor",
    "check_zeros_and_ones",
    "item_levels",
    "parameter_dtype",
    "row_frequency",
    "step_frequency",
    "step_mask",
]

FLOATS = (torch.float32, torch.float64)
ONE_COLUMN = "a single column is x.unsqueeze(-1), and of a table table[['name']]"
ONE_ITEM = "a single item is x.unsqueeze(-1), and of a table table[['name']]"


def check_tensor(x: object, shapes: dict[int, str], remedy: str = "") -> Tensor:
    """Return `x` if it is a non-empty tensor of real numbers with one of `shapes` by dim."""
    if x is None:
        raise TypeError("`x` is None: pass the data.")
    if not isinstance(x, Tensor):
        raise TypeError(
            f"`x` must be a torch.Tensor, not {type(x).__name__}: convert it with torch.as_tensor."
        )
    if x.is_complex():
        raise TypeError("`x` must hold real numbers, not complex ones: pass its parts as columns.")
    if x.dim() not in shapes:
        expected = " or ".join(shapes.values())
        raise ValueError(
            f"`x` must have shape {expected}, not {tuple(x.shape)}: "
            f"{remedy or 'reshape it or pick its columns'}."
        )
    if x.numel() == 0:
        raise ValueError(f"`x` is empty (shape {tuple(x.shape)}): pass at least two rows of data.")
    return x


def check_finite(x: Tensor, gaps: bool = False) -> None:
    """Refuse NaN and infinite values; with `gaps`, NaN only where a whole column has nothing else.

    A column without any value tells nothing, which matters where parameters are estimated only.
    """
    if gaps:
        _check_gaps(x)
        return
    if x.is_floating_point() and not is_finite(x):
        bad = int((~x.isfinite()).sum())
        raise ValueError(
            f"`x` has {bad} NaN or infinite value(s): drop or impute them before fitting."
        )


def _check_gaps(x: Tensor) -> None:
    if not x.is_floating_point() or is_finite(x):
        return
    if bool(x.isinf().any()):
        raise ValueError(
            f"`x` has {int(x.isinf().sum())} infinite value(s): drop them before fitting, or put "
            "NaN in their place if they are missing at random."
        )
    empty = x.isnan().all(0)
    if bool(empty.any()) and dist.is_validation_enabled():
        columns = ", ".join(str(int(column)) for column in empty.reshape(-1).nonzero())
        raise ValueError(f"`x` has nothing but NaN in column(s) {columns}: drop them.")


def check_floats(x: Tensor, gaps: bool = False) -> None:
    """Refuse data that are not of single or double precision, or not finite."""
    if x.dtype not in FLOATS:
        raise TypeError(
            f"`x` must have a floating dtype, float32 or float64, not {x.dtype}: "
            "convert it with x.double() (a tensor) or x.astype(float) (an array or data frame)."
        )
    check_finite(x, gaps)


def check_counts(x: Tensor, gaps: bool = False) -> None:
    """Refuse anything but 0, 1, 2, ..."""
    check_finite(x, gaps)
    if not _whole(x):
        raise ValueError(
            "`x` must hold counts 0, 1, 2, ..., but has negative or fractional values: "
            "round them, or use a Gaussian model."
        )


def check_zeros_and_ones(x: Tensor, gaps: bool = False) -> None:
    """Refuse anything but 0 and 1."""
    check_finite(x, gaps)
    if not bool(((x == 0) | (x == 1) | x.isnan()).all()):
        raise ValueError(
            "`x` must hold only 0 and 1: recode it, or use `categorical_mixture` for more levels."
        )


def check_codes(x: Tensor, gaps: bool = False) -> None:
    """Refuse anything but level codes 0, 1, 2, ..."""
    check_finite(x, gaps)
    if not _whole(x):
        raise ValueError(
            "`x` must hold level codes 0, 1, ..., L - 1, but has negative or fractional values: "
            "recode it, for example with torch.unique(x, return_inverse=True)."
        )


def check_size(size: object, name: str) -> int:
    """Return the number of components or states if it is a positive integer."""
    if not isinstance(size, Integral) or isinstance(size, bool):
        raise TypeError(
            f"`{name}` must be an integer, not {type(size).__name__}: pass {name}=2, say."
        )
    if size < 1:
        raise ValueError(f"`{name}` must be at least 1, not {size}.")
    return int(size)


def check_option(value: object, name: str, options: Sequence[object]) -> None:
    """Refuse a value that is not one of the named options."""
    if value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"`{name}` must be one of {listed}, not {value!r}.")


def check_enough(rows: float, size: int, name: str) -> None:
    """Refuse fewer than two rows, or fewer rows than components (`rows` counts frequencies)."""
    if not dist.is_validation_enabled():
        return
    if rows <= 1:
        raise ValueError(
            f"`x` has {rows:g} row(s) in all, which nothing can be estimated from: "
            "pass at least two (frequencies are counts of rows, so they sum to the rows in all)."
        )
    if size > rows:
        raise ValueError(
            f"`{name}={size}` is more than the {rows:g} rows of `x`: "
            f"pass at most {name}={int(rows)}, or more data."
        )


def parameter_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the parameters: that of `x` if float32 or float64, else torch's default."""
    return x.dtype if x.dtype in FLOATS else torch.get_default_dtype()


def row_frequency(frequency: Tensor | Sequence[float] | None, x: Tensor) -> Tensor:
    """The weight of each row (N,): ones unless given."""
    dtype = parameter_dtype(x)
    if frequency is None:
        return torch.ones(x.shape[0], dtype=dtype, device=x.device)
    weights = _numbers(frequency, "frequency").to(x.device, dtype)
    if weights.shape != x.shape[:1]:
        raise ValueError(
            f"`frequency` must have shape ({x.shape[0]},), one weight for each row of `x`, "
            f"not {tuple(weights.shape)}."
        )
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()):
        raise ValueError(
            "`frequency` must be finite and non-negative: use 0 for a row to be left out."
        )
    if not bool((weights > 0).any()):
        raise ValueError("`frequency` is 0 for every row of `x`: give at least two rows a weight.")
    return weights


def step_frequency(
    frequency: Tensor | Sequence[float] | None, x: Tensor, mask: Tensor | None, batched: bool
) -> Tensor:
    """The weight of each step of the sequences, in one row: that of its sequence."""
    if frequency is None:
        steps = x[..., 0] if x.dim() > 1 + batched else x
        own = steps[mask] if mask is not None else steps.flatten()
        return torch.ones_like(own, dtype=parameter_dtype(x))
    if not batched:
        raise ValueError(
            "`frequency` weighs whole sequences, but `x` is a single one: leave it out, or add a "
            "leading dimension with x.unsqueeze(0)."
        )
    each = row_frequency(frequency, x).unsqueeze(-1).expand(*x.shape[:2])
    return each.flatten() if mask is None else each[mask]


def step_mask(lengths: Tensor | Sequence[int] | None, x: Tensor, batched: bool) -> Tensor | None:
    """The mask (S, T) of the steps that belong to each sequence, or None where all of them do."""
    if lengths is None:
        return None
    if not batched:
        raise ValueError(
            "`lengths` needs a batch of sequences, but `x` is a single one: "
            "cut `x` instead, or add a leading dimension with x.unsqueeze(0)."
        )
    sequences, steps = x.shape[:2]
    counted = _numbers(lengths, "lengths").to(x.device)
    if counted.shape != (sequences,):
        raise ValueError(
            f"`lengths` must have shape ({sequences},), one length for each sequence of `x`, "
            f"not {tuple(counted.shape)}."
        )
    if counted.is_floating_point() or counted.dtype == torch.bool:
        raise TypeError(f"`lengths` must hold integers, not {counted.dtype}: use lengths.long().")
    if bool((counted < 1).any()) or bool((counted > steps).any()):
        raise ValueError(
            f"`lengths` must lie between 1 and the {steps} steps of `x`: drop empty sequences."
        )
    return torch.arange(steps, device=x.device) < counted.unsqueeze(-1)


def item_levels(levels: int | Sequence[int] | None, codes: Tensor) -> list[int]:
    """The number of levels of each column of `codes` (N, J), read from the codes unless given."""
    highest = [int(code) for code in codes.amax(0)]
    if levels is None:
        return [max(code + 1, 2) for code in highest]
    items = len(highest)
    sizes = _numbers(levels, "levels")
    if sizes.is_floating_point() or sizes.dtype == torch.bool:
        raise TypeError("`levels` must be an integer or a sequence of them: pass levels=3, say.")
    if sizes.shape not in ((), (items,)):
        raise ValueError(
            f"`levels` must be one number or {items}, one for each item of `x`, "
            f"not of shape {tuple(sizes.shape)}."
        )
    given = [int(size) for size in sizes.expand(items)]
    if min(given) < 2:
        raise ValueError(f"`levels` must be at least 2, not {min(given)}: drop constant items.")
    for item, (code, level) in enumerate(zip(highest, given, strict=True)):
        if code >= level:
            raise ValueError(
                f"`x` has the code {code} in item {item}, but `levels` allows 0 to {level - 1}: "
                f"recode it, or pass levels={code + 1} or more for this item."
            )
    return given


def _whole(x: Tensor) -> bool:
    """Whether all values that are not missing are 0, 1, 2, ..."""
    if bool((x < 0).any()):
        return False
    return not x.is_floating_point() or bool(((x == x.floor()) | x.isnan()).all())


def _numbers(values: object, name: str) -> Tensor:
    """An argument as a tensor of numbers."""
    try:
        return torch.as_tensor(values)
    except (RuntimeError, TypeError, ValueError):
        raise TypeError(
            f"`{name}` must hold numbers, not {type(values).__name__}: "
            "pass a tensor or a list of numbers."
        ) from None
