"""Latent profiles: one class for each row, behind columns of several kinds.

weights (K)      locs, precisions | rates | probs | probs_j    (plate "components")
    |                     |
    v                     v
assignment (N) --------> continuous | counts | binary | nominal_j    (plate "data")
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ember.models.parts.checks import (
    ONE_COLUMN,
    check_codes,
    check_counts,
    check_enough,
    check_floats,
    check_size,
    check_tensor,
    check_zeros_and_ones,
    item_levels,
    parameter_dtype,
    row_frequency,
)
from ember.models.parts.design import called
from ember.models.parts.emissions import (
    BERNOULLI_KEYS,
    GAUSSIAN_KEYS,
    POISSON_KEYS,
    Emission,
    bernoulli_emission,
    categorical_emission,
    gaussian_emission,
    poisson_emission,
)
from ember.models.parts.plates import data_plate, mixture_weights
from ember.models.parts.priors import (
    HALF_COUNT,
    Hyperparameters,
    Prior,
    default_variance,
    weighted_mean,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["columns_by_kind", "latent_profile"]

CHECKS = {
    "continuous": check_floats,
    "counts": check_counts,
    "binary": check_zeros_and_ones,
    "nominal": check_codes,
}
KEYS = ("concentration", *GAUSSIAN_KEYS, *POISSON_KEYS, *BERNOULLI_KEYS, "probs")


def latent_profile(
    data: Mapping[str, Tensor],
    components: int,
    *,
    levels: int | Sequence[int] | None = None,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Classes of rows with continuous, count, binary and nominal columns, side by side.

    Given its class, all entries of a row are independent. Equations, for row n of class z::

        weights        ~ Dirichlet(concentration)
        continuous_nd  ~ Normal(locs_zd, 1 / sqrt(precisions_zd))
        counts_nd      ~ Poisson(rates_zd)
        binary_nj      ~ Bernoulli(probs_zj)
        nominal_j_n    ~ Categorical(probs_j_z)

    The priors, their keys and defaults are those of `gaussian_mixture` with diagonal covariances
    (`"kappa"`, `"mean"`, `"df"`, `"scale"`), `poisson_mixture` (`"shape"`, `"rate"`),
    `bernoulli_mixture` (`"concentration1"`, `"concentration0"`) and `categorical_mixture`
    (`"probs"`), with one `"concentration"` of the weights. A NaN is a missing entry: it is left
    out, the rest of its row counts.

    Args:
        data: a mapping from one or more of `"continuous"`, `"counts"`, `"binary"`, `"nominal"` to
            tensors (N, D), each with its own number of columns; nominal columns hold codes 0, 1,
            .... `ember.models.profiles.columns_by_kind` makes it from a data frame.
        components: the number K of classes.
        levels: the number of levels of the nominal columns, of all or of each; read from the data
            unless given. Give it where a fitted model meets new rows.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `data` is no mapping of tensors, `components` no integer or `prior` no
            mapping.
        ValueError: if a kind is unknown, lengths differ, a column has values of another kind or
            none at all, there are fewer than two rows or fewer than `components`; if a key of
            `prior` is unknown, or a hyperparameter or frequency outside its domain.

    References:
        J. K. Vermunt and J. Magidson (2002). Latent class cluster analysis. In Applied Latent
        Class Analysis, Cambridge University Press, 89-106.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> data = {
        ...     "continuous": torch.tensor([[1.0], [1.2], [7.0], [float("nan")]]),
        ...     "nominal": torch.tensor([[0], [0], [2], [1]]),
        ... }
        >>> trace = poutine.trace(latent_profile).get_trace(data, 2)
        >>> for name in ("locs", "precisions", "probs_0", "assignment", "continuous", "nominal_0"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        locs (2, 1)
        precisions (2, 1)
        probs_0 (2, 3)
        assignment (4,)
        continuous (4, 1)
        nominal_0 (4,)
    """
    columns, shown = _checked(data)
    check_size(components, "components")
    first = next(iter(columns.values()))
    with called("data"):
        counts = row_frequency(frequency, first)
        hyper = Hyperparameters(prior, KEYS, counts)
        check_enough(float(counts.sum()), components, "components")

    weights = mixture_weights(components, hyper)
    plate = pyro.plate("components", components)
    observed: dict[str, tuple[Tensor, Tensor, Emission]] = {}
    emission: Emission
    for kind, x in columns.items():
        mask = shown[kind]
        if kind == "nominal":
            for j, size in enumerate(item_levels(levels, x)):
                emission = categorical_emission(f"probs_{j}", (components, size), hyper, plate)
                observed[f"nominal_{j}"] = (x[:, j], mask[:, j], emission)
            continue
        if kind == "continuous":
            mean = _mean(x, mask, counts)
            x = torch.where(mask, x, mean)
            given = _with_defaults(hyper, mean=mean, scale=_scale(x, mask, counts, components))
            emission = gaussian_emission(x, counts, components, "diag", given, plate)
        elif kind == "counts":
            shape = hyper.above("shape", (components, x.shape[1]), HALF_COUNT)
            mean = _mean(x, mask, counts).clamp_min(0.5 / float(counts.sum()))
            given = _with_defaults(hyper, rate=shape / mean)
            emission = poisson_emission(x, counts, components, given, plate)
        else:
            emission = bernoulli_emission(x.shape[1], components, hyper, plate)
        observed[kind] = (x, mask, emission)
    with data_plate(len(first), None if frequency is None else counts):
        z = pyro.sample("assignment", dist.Categorical(weights))
        for name, (x, mask, emission) in observed.items():
            pyro.sample(name, _masked(emission(z), mask), obs=x)


def _checked(data: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The columns by kind, missing entries filled, and which entries are there."""
    if not isinstance(data, Mapping):
        raise TypeError(
            f"`data` must be a mapping from kinds of columns to tensors, not {type(data).__name__}:"
            " make it from a data frame with ember.models.profiles.columns_by_kind(frame)."
        )
    unknown = sorted(str(kind) for kind in data.keys() - CHECKS.keys())
    if unknown or not data:
        what = f"the unknown kind '{unknown[0]}'" if unknown else "no columns"
        raise ValueError(f"`data` has {what}: pass one or more of {', '.join(CHECKS)}.")
    filled, shown, rows = {}, {}, {}
    for kind in [kind for kind in CHECKS if kind in data]:
        with called(f"data['{kind}']"):
            x = check_tensor(
                data[kind],
                {2: "(N, D)"},
                ONE_COLUMN,
            )
            there = ~x.isnan()
            if dist.is_validation_enabled() and not bool(there.any(0).all()):
                column = int((~there.any(0)).nonzero()[0])
                raise ValueError(f"`x` has no entry in column {column}: drop it.")
            # A value of the column itself is of its kind, whatever that is.
            some = x.gather(0, there.to(torch.int8).argmax(0, keepdim=True))
            x = torch.where(there, x, some.nan_to_num(0.0))
            CHECKS[kind](x)
        filled[kind] = x.long() if kind == "nominal" else x.to(parameter_dtype(x))
        shown[kind], rows[kind] = there, len(x)
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{count} of {kind}" for kind, count in rows.items())
        raise ValueError(f"`data` has kinds with different numbers of rows: {listed}.")
    return filled, shown


def _scale(x: Tensor, mask: Tensor, counts: Tensor, components: int) -> Tensor:
    """The default variance of each column, missing entries left out."""
    with called("data['continuous']"):
        return default_variance(_with_gaps(x, mask), counts, components)


def _mean(x: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    return weighted_mean(_with_gaps(x, mask), counts)


def _with_gaps(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.nan)


def _with_defaults(hyper: Hyperparameters, **defaults: Tensor) -> Hyperparameters:
    """The same hyperparameters with other defaults for some of them."""
    return Hyperparameters({**defaults, **hyper.given}, KEYS, hyper.like)


def _masked(fn: TorchDistributionMixin, mask: Tensor) -> TorchDistributionMixin:
    """A distribution of which some entries of the event are left out."""
    if bool(mask.all()):
        return fn
    masked: TorchDistributionMixin
    if isinstance(fn, dist.Independent):
        masked = fn.base_dist.mask(mask).to_event(1)
    else:
        masked = fn.mask(mask)
    return masked


def columns_by_kind(
    frame: "pd.DataFrame", kinds: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Sort the columns of a data frame into tensors by kind, for `latent_profile`.

    Floats are continuous, integers counts, booleans binary; categories and strings are nominal and
    become codes (in the order of the categories, or sorted). Missing values become NaN. The
    columns of a kind keep their order.

    Args:
        frame: a pandas data frame.
        kinds: the kind of some columns by name, where the dtype says otherwise.

    Raises:
        ValueError: if `kinds` names no column or no kind, or a dtype tells no kind.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"dose": [0.5, 1.5], "visits": [3, 0], "sex": ["f", "m"]})
        >>> {kind: x.tolist() for kind, x in columns_by_kind(frame).items()}
        {'continuous': [[0.5], [1.5]], 'counts': [[3.0], [0.0]], 'nominal': [[0.0], [1.0]]}
    """
    kinds = dict(kinds or {})
    for name, kind in kinds.items():
        if name not in frame.columns:
            raise ValueError(f"`kinds` names '{name}', which is no column of the data frame.")
        if kind not in CHECKS:
            raise ValueError(f"`kinds` says {kind!r} of '{name}': use one of {', '.join(CHECKS)}.")
    sorted_columns: dict[str, list[Tensor]] = {kind: [] for kind in CHECKS}
    for name in frame.columns:
        column = frame[name]
        kind = kinds.get(name) or _kind(name, column)
        if kind == "nominal":
            codes = column.astype("category").cat.codes.to_numpy(dtype=float, copy=True)
            codes[codes < 0] = float("nan")
            values = torch.from_numpy(codes)
        else:
            values = torch.tensor(column.to_numpy(dtype=float, na_value=float("nan")))
        sorted_columns[kind].append(values)
    return {kind: torch.stack(found, 1) for kind, found in sorted_columns.items() if found}


def _kind(name: str, column: "pd.Series") -> str:
    letter = getattr(column.dtype, "kind", "O")
    if hasattr(column, "cat") or letter in "OUST":
        return "nominal"
    kind = {"f": "continuous", "i": "counts", "u": "counts", "b": "binary"}.get(letter)
    if kind is None:
        raise ValueError(
            f"column '{name}' has dtype {column.dtype}, which is of no kind: drop it, convert it, "
            "or name its kind with kinds={...}."
        )
    return kind
