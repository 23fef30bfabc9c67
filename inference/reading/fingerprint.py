"""A fingerprint of what a model says: whatever is read from it may be kept as long as this stays.

Data reach a model as arguments, but as well through closures, globals, partial functions and the
parameters of modules, and all of them can be changed in place. So the model itself is asked: one
run at random parameters shows every site with its distribution, value, mask and scale, and a run
costs little beside the many that it takes to read a model. A cryptographic digest of it needs no
copy of the data with which a later run would have to be compared.
"""

import hashlib
import pickle
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from ember.inference.numerics.shapes import unexpanded
from ember.inference.reading.matching.arguments import probe_values
from ember.inference.reading.structure import Structure

__all__ = ["digest_of", "fingerprint"]


PARTS = ("type", "fn", "value", "mask", "scale", "is_observed", "infer", "args", "kwargs")


def fingerprint(structure: Structure) -> bytes | None:
    """The digest of a structure's arguments and of a run of its model; None if there is none.

    Two equal digests mean that the model says the same; different ones may mean nothing.
    """
    try:
        trace = structure.trace(probe_values(structure, 0))
        digest = _Digest()
        digest.add(tuple(structure.arguments))
        for name, site in trace.nodes.items():
            digest.add(name)
            # The function behind a pyro.param statement is Pyro's own.
            parts = [part for part in PARTS if part != "fn" or site["type"] == "sample"]
            digest.add({part: site.get(part) for part in parts})
            digest.add([(f.name, f.dim, f.size) for f in site.get("cond_indep_stack", ())])
    except Exception:  # whatever it is, nothing is known then
        return None
    return digest.hash.digest()


def digest_of(value: object) -> bytes | None:
    """The digest of a value, containers opened; None if nothing is known of what it holds."""
    digest = _Digest()
    try:
        digest.add(value)
    except Exception:  # whatever it is, nothing is known then
        return None
    return digest.hash.digest()


class _Digest:
    """Adds values to a hash, containers and distributions opened."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=32)
        self.open: set[int] = set()

    def add(self, value: object) -> None:
        """Adds a value.

        Raises:
            Exception: If nothing is known of what the value holds.
        """
        self._write(type(value).__qualname__)
        if isinstance(value, Tensor):
            self._tensor(value.detach())
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            self._write(repr(value))
        elif isinstance(value, Mapping):
            self._many([item for pair in value.items() for item in pair])
        elif isinstance(value, (list, tuple)):
            self._many(value)
        elif isinstance(value, (Distribution, Transform, constraints.Constraint)):
            self._object(value)
        else:
            self.hash.update(pickle.dumps(value))

    def _write(self, text: str) -> None:
        self.hash.update(f"{len(text)}:{text}".encode())

    def _many(self, values: Sequence[object]) -> None:
        self._write(str(len(values)))
        for value in values:
            self.add(value)

    def _object(self, value: object) -> None:
        if id(value) in self.open:  # it holds itself
            return
        self.open.add(id(value))
        self.add(vars(value))
        self.open.remove(id(value))

    def _tensor(self, value: Tensor) -> None:
        self._write(f"{tuple(value.shape)} {value.layout}")
        if value.layout == torch.strided:
            self._array(unexpanded(value).cpu().numpy())
        elif value.layout == torch.sparse_coo:
            value = value.coalesce()
            self._many([value.indices(), value.values()])
        elif value.layout in (torch.sparse_csr, torch.sparse_bsr):
            self._many([value.crow_indices(), value.col_indices(), value.values()])
        else:
            self._many([value.ccol_indices(), value.row_indices(), value.values()])

    def _array(self, value: np.ndarray) -> None:
        if value.dtype.hasobject:  # its bytes are addresses
            self._many(value.ravel().tolist())
            return
        self._write(f"{value.dtype} {value.shape}")
        self.hash.update(np.ascontiguousarray(value).view(np.uint8).reshape(-1).data)
