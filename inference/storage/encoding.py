"""Values as tensors and JSON, and back: types that are named here and no others.

Numbers, words, None and lists stand in JSON as they are. All else is an object with one key that
says what it is: ``{"tuple": [...]}``, ``{"tensor": "params.locs"}``. A tensor is in a table beside
the JSON, under the name that stands there.
"""

import dataclasses
import enum
import math
import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Decoder", "Encoder", "NotStorable"]


PARTS = {  # of sparse tensors, in the order in which torch takes them
    torch.sparse_coo: ("indices", "values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
LAYOUTS = {str(layout).removeprefix("torch."): layout for layout in PARTS}
DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}


class NotStorable(Exception):
    """A value of a kind that a file does not hold; the message says which."""


class Encoder:
    """Turns values into JSON, and collects their tensors.

    Args:
        classes: The dataclasses and enumerations that may occur.
    """

    def __init__(self, classes: Collection[type] = ()) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._classes = tuple(classes)

    def encode(self, value: Any, name: str) -> Any:
        """The JSON of a value; ``name`` is that of its tensors, or where theirs begin.

        Raises:
            NotStorable: If it is, or holds, something that cannot be stored.
        """
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is list:
            return self._many(value, name)
        if kind is tuple:
            return {"tuple": self._many(value, name)}
        if kind is torch.Size:
            return {"size": list(value)}
        if kind is dict:
            keys, start = self._many(list(value), f"{name}.key"), f"{name}." if name else ""
            items = [self.encode(item, f"{start}{key}") for key, item in value.items()]
            return {"dict": [list(pair) for pair in zip(keys, items, strict=True)]}
        if isinstance(value, np.generic):
            return self.encode(value.item(), name)
        if isinstance(value, Tensor):
            return self._tensor(value.detach().cpu(), name)
        if kind in self._classes:
            return self._object(value, name)
        raise NotStorable(
            f"a {kind.__name__}, and not numbers, words, tensors, or tuples, lists, dicts of them"
        )

    def _many(self, values: Any, name: str) -> list[Any]:
        return [self.encode(item, f"{name}.{place}") for place, item in enumerate(values)]

    def _tensor(self, value: Tensor, name: str) -> dict[str, Any]:
        if value.layout in PARTS:
            value = value.coalesce() if value.layout == torch.sparse_coo else value
            parts = [self._tensor(getattr(value, part)(), f"{name}.{part}")
                     for part in PARTS[value.layout]]  # fmt: skip
            layout = str(value.layout).removeprefix("torch.")
            return {"sparse": [layout, list(value.shape), parts]}
        if value.layout != torch.strided or value.dtype not in DTYPES:
            raise NotStorable(f"a tensor of {value.dtype} and {value.layout}")
        while name in self.tensors:
            name += "_"
        self.tensors[name] = value.clone(memory_format=torch.contiguous_format)
        return {"tensor": name}

    def _object(self, value: Any, name: str) -> dict[str, Any]:
        if isinstance(value, enum.Enum):
            return {type(value).__name__: value.name}
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {type(value).__name__: self.encode(fields, name)}


class Decoder:
    """Turns JSON back into values.

    Args:
        tensors: The table of tensors.
        classes: The dataclasses and enumerations that may occur.
    """

    def __init__(self, tensors: dict[str, Tensor], classes: Collection[type] = ()) -> None:
        self._tensors = tensors
        self._makers: dict[str, Callable[[Any], Any]] = {
            "float": float,
            "tuple": lambda items: tuple(map(self.decode, items)),
            "size": torch.Size,
            "dict": lambda pairs: {self.decode(key): self.decode(item) for key, item in pairs},
            "tensor": tensors.__getitem__,
            "sparse": lambda parts: self._sparse(*parts),
            **{kind.__name__: self._maker(kind) for kind in classes},
        }

    def decode(self, written: Any) -> Any:
        """The value behind a piece of JSON.

        Raises:
            KeyError: If it names a type or a tensor that is not there; other errors if the JSON is
                not what an ``Encoder`` writes.
        """
        if isinstance(written, list):
            return [self.decode(item) for item in written]
        if not isinstance(written, dict):
            return written
        ((kind, content),) = written.items()
        return self._makers[kind](content)

    def _maker(self, kind: type) -> Callable[[Any], Any]:
        if issubclass(kind, enum.Enum):
            return kind.__getitem__
        return lambda fields: kind(**self.decode(fields))

    def _sparse(self, layout: str, shape: list[int], parts: list[Any]) -> Tensor:
        made, kind, size = [self.decode(part) for part in parts], LAYOUTS[layout], torch.Size(shape)
        if kind == torch.sparse_coo:
            places, values = made
            coo = torch.sparse_coo_tensor(places, values, size=size, check_invariants=True)
            return coo.coalesce()
        rows, columns, values = made
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse .* tensor support is in beta state")
            return torch.sparse_compressed_tensor(
                rows, columns, values, size=size, layout=kind, check_invariants=True
            )
