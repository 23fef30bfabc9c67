"""Relationships of animals by their pedigree, for `animal_model`: plain functions of codes.

A pedigree names the sire and the dam of each animal (plants and people likewise) by codes
0, ..., n - 1, with -1 for a parent that is not known. Parents may stand after their offspring.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.models.parts.checks import check_tensor
from ember.models.parts.design import called

__all__ = ["generations", "inbreeding", "inverse_relationship_matrix", "relationship_matrix"]

CHUNK = 256  # columns of a relationship matrix that are made at once


def relationship_matrix(sire: Tensor, dam: Tensor) -> Tensor:
    r"""The numerator relationship matrix: twice the probability that two animals share a gene.

    Equations, with `s` and `d` the parents of `i`, and zero in the place of one that is not known::

        A[i, j] = (A[s, j] + A[d, j]) / 2      for every j that is no descendant of i
        A[i, i] = 1 + A[s, d] / 2

    Args:
        sire: the father of each animal (n,), coded; -1 where it is not known.
        dam: the mother of each animal (n,), likewise.

    Returns:
        The matrix (n, n) in float64; its diagonal is one plus the inbreeding of each animal.

    Raises:
        TypeError: if `sire` or `dam` is no tensor of integers.
        ValueError: if their lengths differ, a code is out of range, or an animal is its own
            ancestor.

    References:
        C. R. Henderson (1976). A simple method for computing the inverse of a numerator
        relationship matrix used in prediction of breeding values. Biometrics 32, 69-83.

    Example:
        >>> import torch
        >>> sire = torch.tensor([-1, -1, 0, 0, 3, 4])
        >>> dam = torch.tensor([-1, -1, 1, -1, 2, 1])
        >>> print(relationship_matrix(sire, dam)[5])
        tensor([0.2500, 0.6250, 0.5625, 0.3125, 0.6875, 1.1250], dtype=torch.float64)
    """
    pedigree = Pedigree.of(sire, dam)
    mendelian = pedigree.mendelian(pedigree.inbreeding())
    return pedigree.columns(torch.arange(len(mendelian), device=mendelian.device), mendelian)


def inverse_relationship_matrix(sire: Tensor, dam: Tensor) -> Tensor:
    r"""The inverse of the relationship matrix by Henderson's rules: sparse, and without inverting.

    Equation, with row i of :math:`P` one half at the parents of animal i, and :math:`d_i` the
    variance of its own sampling of their genes::

        inverse of A = (I - P)' diag(1 / d) (I - P)

    So an animal meets its parents and its mates alone.

    Args:
        sire: the father of each animal (n,), coded; -1 where it is not known.
        dam: the mother of each animal (n,), likewise.

    Returns:
        A sparse matrix (n, n) in float64; `.to_dense()` makes a `precision_matrix` of it.

    Raises:
        TypeError: if `sire` or `dam` is no tensor of integers.
        ValueError: if their lengths differ, a code is out of range, or an animal is its own
            ancestor.

    References:
        C. R. Henderson (1976). Biometrics 32, 69-83; inbreeding is accounted for as in
        R. L. Quaas (1976). Computing the diagonal elements and inverse of a large numerator
        relationship matrix. Biometrics 32, 949-953.

    Example:
        >>> import torch
        >>> sire, dam = torch.tensor([-1, -1, 0]), torch.tensor([-1, -1, 1])
        >>> inverse_relationship_matrix(sire, dam).to_dense()
        tensor([[ 1.5000,  0.5000, -1.0000],
                [ 0.5000,  1.5000, -1.0000],
                [-1.0000, -1.0000,  2.0000]], dtype=torch.float64)
    """
    pedigree = Pedigree.of(sire, dam)
    count = len(pedigree.sire)
    weight = 1.0 / pedigree.mendelian(pedigree.inbreeding())
    own = [
        (torch.arange(count, device=weight.device), 1.0),
        (pedigree.sire, -0.5),
        (pedigree.dam, -0.5),
    ]
    pairs, values = [], []
    for one, left in own:
        for other, right in own:
            known = (one >= 0) & (other >= 0)
            pairs.append(torch.stack([one[known], other[known]]))
            values.append(left * right * weight[known])
    found = torch.sparse_coo_tensor(
        torch.cat(pairs, 1), torch.cat(values), (count, count), check_invariants=False
    )
    return found.coalesce()


def inbreeding(sire: Tensor, dam: Tensor) -> Tensor:
    """The inbreeding coefficient of each animal: half the relationship of its parents.

    Args:
        sire: the father of each animal (n,), coded; -1 where it is not known.
        dam: the mother of each animal (n,), likewise.

    Returns:
        The coefficients (n,) in float64, zero for founders.

    Raises:
        TypeError: if `sire` or `dam` is no tensor of integers.
        ValueError: if their lengths differ, a code is out of range, or an animal is its own
            ancestor.

    References:
        J. J. Colleau (2002). An indirect approach to the extensive calculation of relationship
        coefficients. Genetics Selection Evolution 34, 409-421.

    Example:
        >>> import torch
        >>> inbreeding(torch.tensor([-1, -1, 0, 2]), torch.tensor([-1, -1, 1, 0]))
        tensor([0.0000, 0.0000, 0.0000, 0.2500], dtype=torch.float64)
    """
    return Pedigree.of(sire, dam).inbreeding()


def generations(sire: Tensor, dam: Tensor) -> Tensor:
    """The generation of each animal: 0 of founders, else one more than that of the later parent.

    Args:
        sire: the father of each animal (n,), coded; -1 where it is not known.
        dam: the mother of each animal (n,), likewise.

    Returns:
        Codes (n,).

    Raises:
        TypeError: if `sire` or `dam` is no tensor of integers.
        ValueError: if their lengths differ, a code is out of range, or an animal is its own
            ancestor.

    Example:
        >>> import torch
        >>> generations(torch.tensor([-1, -1, 0, 2]), torch.tensor([-1, -1, 1, -1]))
        tensor([0, 0, 1, 2])
    """
    return Pedigree.of(sire, dam).generation


@dataclass(frozen=True)
class Pedigree:
    """Parents (n,) by codes, -1 for those that are not known, and the generation of each animal."""

    sire: Tensor
    dam: Tensor
    generation: Tensor

    @staticmethod
    def of(sire: object, dam: object) -> "Pedigree":
        """Check the codes of a pedigree, and order it."""
        parents = [_check_parents(sire, "sire"), _check_parents(dam, "dam")]
        if len(parents[0]) != len(parents[1]):
            raise ValueError(
                f"`sire` has {len(parents[0])} row(s) but `dam` has {len(parents[1])}: pass one "
                "code for each animal, -1 for a parent that is not known."
            )
        return Pedigree(parents[0], parents[1], _generations(parents[0], parents[1]))

    def to(self, device: torch.device) -> "Pedigree":
        """The same on another device."""
        return Pedigree(self.sire.to(device), self.dam.to(device), self.generation.to(device))

    def members(self) -> list[Tensor]:
        """The animals of each generation, in their order."""
        order = torch.argsort(self.generation, stable=True)
        return list(order.split(torch.bincount(self.generation).tolist()))

    def inbreeding(self) -> Tensor:
        """The inbreeding coefficient of each animal (n,), computed once for a pedigree."""
        with torch.device("cpu"):
            known = _inbreeding(*(p.cpu().numpy().tobytes() for p in (self.sire, self.dam)))
        return known.to(self.sire.device)

    def mendelian(self, inbreeding: Tensor) -> Tensor:
        """The share of the variance that is an animal's own sampling of its parents' genes (n,)."""
        share = torch.ones_like(inbreeding)
        for parent in (self.sire, self.dam):
            share -= torch.where(parent >= 0, 0.25 * (1.0 + inbreeding[parent]), 0.0)
        return share

    def columns(self, animals: Tensor, mendelian: Tensor, until: int | None = None) -> Tensor:
        """Columns of the relationship matrix (n, C): `A = T diag(mendelian) T'`, never made.

        Args:
            animals: Whose columns they are (C,).
            mendelian: The share of each animal's own sampling (n,), right for ancestors.
            until: The generation before which all of them lived; the last one unless given.
        """
        every = self.members()[:until]
        found = mendelian.new_zeros(len(self.sire), len(animals))
        found[animals, torch.arange(len(animals), device=found.device)] = 1.0
        for members in reversed(every):
            for parent in (self.sire, self.dam):
                known = members[parent[members] >= 0]
                found.index_add_(0, parent[known], 0.5 * found[known])
        found *= mendelian.unsqueeze(-1)
        for members in every:
            for parent in (self.sire, self.dam):
                known = members[parent[members] >= 0]
                found[known] += 0.5 * found[parent[known]]
        return found


@functools.lru_cache(maxsize=8)  # a model is run again and again with one pedigree
def _inbreeding(sires: bytes, dams: bytes) -> Tensor:
    """The inbreeding coefficients, generation after generation, of codes as they are in memory."""
    sire, dam = (torch.frombuffer(bytearray(p), dtype=torch.long) for p in (sires, dams))
    pedigree = Pedigree(sire, dam, _generations(sire, dam))
    found = torch.zeros(len(sire), dtype=torch.float64)
    for animals in pedigree.members()[1:]:
        both = animals[(sire[animals] >= 0) & (dam[animals] >= 0)]
        if not len(both):
            continue
        fathers, place = torch.unique(sire[both], return_inverse=True)
        mendelian = pedigree.mendelian(found)
        until = int(pedigree.generation[both[0]])
        for start in range(0, len(fathers), CHUNK):
            columns = pedigree.columns(fathers[start : start + CHUNK], mendelian, until)
            own = (place >= start) & (place < start + CHUNK)
            found[both[own]] = 0.5 * columns[dam[both[own]], place[own] - start]
    return found


def _check_parents(codes: object, name: str) -> Tensor:
    with called(name):
        parents = check_tensor(codes, {1: "(n,)"})
    if parents.is_floating_point() or parents.dtype == torch.bool:
        raise TypeError(
            f"`{name}` must hold the codes of parents as integers, -1 for those that are not "
            f"known, not {parents.dtype}: convert it with .long()."
        )
    least, most = int(parents.min()), int(parents.max())
    if least < -1 or most >= len(parents):
        raise ValueError(
            f"`{name}` has the code {least if least < -1 else most}, but there are {len(parents)} "
            f"animals: codes run from 0 to {len(parents) - 1}, and -1 is a parent not known."
        )
    return parents.long()


def _generations(sire: Tensor, dam: Tensor) -> Tensor:
    generation = torch.zeros_like(sire)
    while True:
        after = torch.zeros_like(sire)
        for parent in (sire, dam):
            after = torch.maximum(after, torch.where(parent >= 0, generation[parent] + 1, 0))
        if torch.equal(after, generation):
            return generation
        if int(after.max()) >= len(sire):
            animal = int(after.argmax())
            raise ValueError(
                f"animal {animal} is its own ancestor, or descends from one that is: correct its "
                "`sire` or `dam`, or that of its ancestors."
            )
        generation = after
