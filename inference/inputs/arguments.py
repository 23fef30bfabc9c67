"""What a user passes in, made ready for the model: float64 tensors, a sheltered global state."""

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, cast

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor

from ember.inference.inputs.devices import device_of

__all__ = ["Arguments", "Model", "prepare"]


Model = Callable[..., object]


class Arguments(NamedTuple):
    """The positional and keyword arguments of a model, after conversion."""

    args: tuple[object, ...]
    kwargs: dict[str, object]

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments, containers opened."""
        tensors: list[Tensor] = []

        def visit(value: object) -> None:
            if isinstance(value, Tensor):
                tensors.append(value)
            elif isinstance(value, Mapping):
                for item in value.values():
                    visit(item)
            elif isinstance(value, (list, tuple)):
                for item in value:
                    visit(item)

        visit(self.args)
        visit(self.kwargs)
        return tensors


def prepare(
    args: tuple[object, ...], kwargs: Mapping[str, object], device: torch.device | None = None
) -> Arguments:
    """Converts arrays and data frames to tensors and floating-point data to float64, in one place.

    Masked entries of an array, and pandas' own missing values, become NaN. Integers, booleans,
    strings and everything else pass through unchanged. EM sums over the data and asks that the
    objective never falls by more than rounding; float32 cannot hold that promise, so float32 data
    is computed in float64.

    Args:
        args: The arguments of the model.
        kwargs: Its keyword arguments.
        device: Where they are brought; by default where the tensors among them are.

    Raises:
        TypeError: If a data frame or array holds something other than numbers.
        ValueError: If they are on several accelerators.
    """
    device = device_of((args, kwargs)) if device is None else device
    return Arguments(
        tuple(_convert(_listed(v, i), f"argument {i + 1}", device) for i, v in enumerate(args)),
        {name: _convert(value, f"argument '{name}'", device) for name, value in kwargs.items()},
    )


def _listed(value: object, position: int) -> object:
    """Data given as a list of numbers, or of lists of numbers, as an array."""
    if not isinstance(value, list) or any(isinstance(item, (Tensor, np.ndarray)) for item in value):
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(value, dtype=object)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"argument {position + 1} is a list that is no table of numbers; pass a tensor, an "
            "array or a data frame of numbers."
        )
    return array


def _convert(value: object, where: str, device: torch.device) -> object:
    if isinstance(value, pd.api.extensions.ExtensionArray):
        value = pd.Series(value)
    if isinstance(value, pd.DataFrame):
        _check_numbers(value, where)
    if isinstance(value, (pd.DataFrame, pd.Series)):
        value = _table(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(
                f"{where} has dtype {value.dtype}; pass numbers only "
                "(select the numeric columns, or encode categories as integers 0, 1, ...)."
            )
        if np.ma.is_masked(value):  # of integers too: NaN alone says that an entry is missing
            value = np.ma.filled(value.astype("float64"), np.nan)
        value = torch.from_numpy(np.array(value, order="C"))
    if scipy.sparse.issparse(value):
        value = _sparse_tensor(cast(_SparseMatrix, value))
    if isinstance(value, Tensor):
        # Data are constants, with respect to which no gradient is recorded; and what was read from
        # them must go with them, whatever the user does to his own tensor later.
        kind = torch.float64 if value.is_floating_point() else value.dtype
        return value.detach().to(device, kind, copy=True)
    if type(value) is dict:
        return {key: _convert(item, f"{where}[{key!r}]", device) for key, item in value.items()}
    if type(value) is list:
        return [_convert(item, where, device) for item in value]
    if type(value) is tuple:
        return tuple(_convert(item, where, device) for item in value)
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    return value


def _check_numbers(table: pd.DataFrame, where: str) -> None:
    """Refuses tables with columns of dates and the like, and names them."""
    kinds = {str(name): kind for name, kind in table.dtypes.items() if kind.kind not in "biuf"}
    if kinds:
        name, kind = next(iter(kinds.items()))
        raise TypeError(
            f"{where} has a column '{name}' of dtype {kind}; pass numbers only (select the numeric "
            "columns, or encode it as numbers)."
        )


def _table(value: pd.DataFrame | pd.Series) -> np.ndarray:
    """The array of a data frame or series; pandas' own missing integers become NaN."""
    array = value.to_numpy()
    kinds = {t.kind for t in (value.dtypes if isinstance(value, pd.DataFrame) else [value.dtype])}
    if array.dtype.kind == "O" and kinds <= set("biuf"):
        array = value.to_numpy(dtype="float64", na_value=np.nan)
    return array


class _SparseMatrix(Protocol):
    """Any of SciPy's sparse matrices and arrays."""

    def tocsr(self) -> scipy.sparse.csr_matrix: ...


def _sparse_tensor(matrix: _SparseMatrix) -> Tensor:
    """A SciPy matrix as PyTorch's of compressed rows, without a copy where it is that already."""
    rows = matrix.tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            torch.from_numpy(rows.indptr),
            torch.from_numpy(rows.indices),
            torch.from_numpy(rows.data),
            rows.shape,
            check_invariants=False,  # canonical rows fulfil them
        )
