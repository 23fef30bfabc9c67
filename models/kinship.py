"""The animal model: relatives resemble each other as far as they share genes.

coefficients (F)   variance    additive_variance    relationship A (n, n), or a pedigree, known
      |               |                |                   |
      |               |                v                   v
      |               |          breeding_values (n) <-----+
      v               v                |
      +---------> y (N) <--------------+                 (plate "data")

heritability = additive_variance / (additive_variance + variance)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.checks import FLOATS, check_codes, check_finite, check_option, check_tensor
from ember.models.parts.design import called, check_response, design_matrix
from ember.models.parts.emissions import select
from ember.models.parts.gaussian_latents import (
    Line,
    coefficients_of_line,
    computed,
    gaussian_latent,
    variance_site,
)
from ember.models.parts.missing import observe
from ember.models.parts.plates import data_plate
from ember.models.parts.priors import Hyperparameters, Prior
from ember.models.pedigrees import Pedigree

__all__ = ["animal_model"]

KEYS = ("mean", "deviation", "df", "scale", "additive_df", "additive_scale")


def animal_model(
    y: Tensor,
    X: Tensor | None = None,
    *,
    relationship: Tensor | None = None,
    sire: Tensor | None = None,
    dam: Tensor | None = None,
    animal: Tensor | None = None,
    coordinates: str = "centred",
    intercept: bool = True,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Records of animals whose breeding values have a known relationship.

    Equations, with the known relationship matrix :math:`A` and `a` the animal of record n::

        coefficients      ~ Normal(mean, covariance)
        variance          ~ InverseGamma(df / 2, scale / 2)
        additive_variance ~ InverseGamma(additive_df / 2, additive_scale / 2)
        breeding_values   ~ Normal(0, additive_variance A)
        y_n               ~ Normal(X_n @ coefficients + breeding_values_a, sqrt(variance))

    The site `heritability`, `additive_variance / (additive_variance + variance)`, is computed. The
    same model serves genomic prediction, with :math:`A` from markers, and Gaussian processes with a
    known kernel.

    A pedigree, `sire` and `dam` in the place of `relationship`, makes the same breeding values
    generation after generation, from those of their parents :math:`s, d` and of the genes that each
    animal draws by itself, of the share :math:`m_i` of the variance (less where parents are
    inbred)::

        breeding_values_g ~ Normal((u_s + u_d) / 2, sqrt(additive_variance m))

    Site `breeding_values_g` holds those of the animals of generation `g`, in the order of their
    codes; `ember.models.pedigrees.generations` says which these are. No matrix of all animals is
    ever made, so there may be many; `ember.models.pedigrees.relationship_matrix` makes that of a
    few thousand.

    With `coordinates="non-centred"` the latent site is `standard_values` (n,), independent standard
    normals, and the breeding values are `sqrt(additive_variance) L @ standard_values` with
    :math:`L L' = A`: the same model, in which sampling mixes better where records are few. With a
    pedigree the sites are `standard_values_g`, of the genes that each animal draws by itself.

    =================== ===================== ====================================================
    key of `prior`      shape it broadcasts   default
                        to
    =================== ===================== ====================================================
    `"mean"`            (F,)                  the line without slopes at the mean of `y`; 0 beside
                                              a `deviation` of your own
    `"deviation"`       (F,)                  of independent coefficients; see
                                              `regression_mixture` for the weak covariance
    `"df"`              ()                    3: the mode is a fifth of `scale`
    `"scale"`           ()                    the variance that the line alone leaves
    `"additive_df"`     ()                    3
    `"additive_scale"`  ()                    the variance that the line alone leaves, over the
                                              mean of the diagonal of :math:`A`
    =================== ===================== ====================================================

    NaN in `y` stands for a record that is missing at random, and drops out.

    Args:
        y: the records (N,), floating, NaN where missing; its dtype is that of all parameters.
        X: the covariates (N, F), or (N,) for a single one; None for an intercept alone.
        relationship: the matrix A (n, n), symmetric and positive definite.
        sire: the father of each animal (n,), coded 0, ..., n - 1; -1 where it is not known.
        dam: the mother of each animal (n,), likewise.
        animal: which animal each record is of (N,), coded 0, ..., n - 1; record n is of animal n
            unless given.
        coordinates: `"centred"` or `"non-centred"`.
        intercept: whether a column of ones stands before the columns of `X`; it counts in F.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each record counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `y`, `X`, `relationship`, `sire`, `dam` or `animal` is no tensor, or `prior`
            no mapping.
        ValueError: if shapes differ, values are not finite, `relationship` is not symmetric and
            positive definite, or a code is out of range; if both a relationship and a pedigree are
            given, or neither, or an animal is its own ancestor; if there are fewer than two records
            or they are all the same; if an option or a key of `prior` is unknown, or a
            hyperparameter or frequency outside its domain.

    References:
        C. R. Henderson (1976). A simple method for computing the inverse of a numerator
        relationship matrix used in prediction of breeding values. Biometrics 32, 69-83.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> A = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.5, 0.5, 1.0]])
        >>> y = torch.tensor([3.1, 4.0, 3.8])
        >>> trace = poutine.trace(animal_model).get_trace(y, relationship=A)
        >>> for name in ("coefficients", "variance", "additive_variance", "breeding_values", "y"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        coefficients (1,)
        variance ()
        additive_variance ()
        breeding_values (3,)
        y (3,)
        >>> pedigree = {"sire": torch.tensor([-1, -1, 0]), "dam": torch.tensor([-1, -1, 1])}
        >>> trace = poutine.trace(animal_model).get_trace(y, **pedigree)
        >>> [name for name in trace.nodes if name.startswith("breeding")]
        ['breeding_values_0', 'breeding_values_1']
    """
    y = check_response(y, "gaussian", gaps=True)
    fixed = design_matrix(X, y, intercept)
    check_option(coordinates, "coordinates", ("centred", "non-centred"))
    kinship = _kinship(relationship, sire, dam, y)
    codes = _check_animal(animal, kinship.animals, y)
    hyper = Hyperparameters(prior, KEYS, y)
    line = Line.of(y, fixed, frequency)

    coefficients = coefficients_of_line(line, hyper)
    left = line.left
    variance = variance_site("variance", hyper, ("df", "scale"), left)
    additive = variance_site(
        "additive_variance", hyper, ("additive_df", "additive_scale"), left / kinship.mean_variance
    )
    computed("heritability", additive / (additive + variance))
    values = kinship.values(additive, coordinates == "centred")
    location = (fixed * coefficients).sum(-1) + select(values, codes, 0)
    with data_plate(len(y), None if frequency is None else line.weights):
        observe("y", dist.Normal(location, variance.sqrt()), y, line.shown)


@dataclass(frozen=True)
class Relationship:
    """A relationship matrix A (n, n)."""

    matrix: Tensor

    @property
    def animals(self) -> int:
        return len(self.matrix)

    @property
    def mean_variance(self) -> Tensor:
        """The mean of the diagonal of A."""
        return self.matrix.diagonal().mean()

    def values(self, additive: Tensor, centred: bool) -> Tensor:
        """Declare the latent (n,), and return the breeding values (n,)."""
        zeros = self.matrix.new_zeros(self.animals)
        if centred:
            covariance = additive[..., None, None] * self.matrix
            fn = dist.MultivariateNormal(zeros, covariance_matrix=covariance)
            return _as_batch(gaussian_latent("breeding_values", fn))
        standard = dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)
        z = gaussian_latent("standard_values", standard)
        factor = torch.linalg.cholesky(self.matrix)
        return _as_batch(additive.sqrt().unsqueeze(-1) * torch.einsum("ij,...j->...i", factor, z))


@dataclass(frozen=True)
class Generations:
    """A pedigree, with the share of the variance that each animal draws by itself (n,)."""

    pedigree: Pedigree
    mendelian: Tensor
    inbreeding: Tensor

    @property
    def animals(self) -> int:
        return len(self.mendelian)

    @property
    def mean_variance(self) -> Tensor:
        """The mean of the diagonal of A."""
        return 1.0 + self.inbreeding.mean()

    def values(self, additive: Tensor, centred: bool) -> Tensor:
        """Declare the latents of all generations, and return the breeding values (n,)."""
        members = self.pedigree.members()
        place = torch.argsort(torch.cat(members))
        # The last number is the zero of a parent that is not known.
        made = torch.zeros_like(additive + additive.new_zeros(1))
        before = 0
        for g, animals in enumerate(members):
            parents = [parent[animals] for parent in (self.pedigree.sire, self.pedigree.dam)]
            places = [torch.where(p >= 0, place[p], before) for p in parents]
            mean = 0.5 * (made[..., places[0]] + made[..., places[1]])
            scale = (additive * self.mendelian[animals]).sqrt()
            with pyro.plate(f"generation_{g}", len(animals)):
                if centred:
                    values = gaussian_latent(f"breeding_values_{g}", dist.Normal(mean, scale))
                else:
                    standard = dist.Normal(torch.zeros_like(mean), torch.ones_like(scale))
                    values = mean + scale * gaussian_latent(f"standard_values_{g}", standard)
            shape = torch.broadcast_shapes(made.shape[:-1], values.shape[:-1])
            known, values = made[..., :before].expand(*shape, -1), values.expand(*shape, -1)
            made = torch.cat([known, values, values.new_zeros(*shape, 1)], -1)
            before += len(animals)
        return made[..., place]


def _kinship(
    relationship: object, sire: object, dam: object, y: Tensor
) -> Relationship | Generations:
    if (relationship is None) == (sire is None and dam is None):
        raise ValueError(
            "`animal_model` needs either `relationship`, the matrix of all animals, or a pedigree, "
            "`sire` and `dam`: pass one of the two."
        )
    if relationship is not None:
        return Relationship(_check_relationship(relationship).to(y))
    if sire is None or dam is None:
        missing = "sire" if sire is None else "dam"
        raise ValueError(
            f"a pedigree has `sire` and `dam`, and `{missing}` is not given: pass both, -1 for "
            "each parent that is not known."
        )
    pedigree = Pedigree.of(sire, dam).to(y.device)
    found = pedigree.inbreeding()
    return Generations(pedigree, pedigree.mendelian(found).to(y), found.to(y))


def _as_batch(values: Tensor) -> Tensor:
    """An event (..., 1, n) below outer plates as their batch (..., n)."""
    return values.squeeze(-2) if values.dim() > 1 else values


def _check_relationship(relationship: object) -> Tensor:
    with called("relationship"):
        matrix = check_tensor(relationship, {2: "(n, n)"})
        if matrix.dtype not in FLOATS:
            matrix = matrix.to(torch.get_default_dtype())
        check_finite(matrix)
    square = matrix.shape[0] == matrix.shape[1]
    if not square or not (torch.equal(matrix, matrix.mT) or torch.allclose(matrix, matrix.mT)):
        raise ValueError(
            f"`relationship` must be square and symmetric, and of shape {tuple(matrix.shape)} it "
            "is not: pass one row and one column for each animal."
        )
    if dist.is_validation_enabled() and int(torch.linalg.cholesky_ex(matrix)[1]):
        raise ValueError(
            "`relationship` must be positive definite: merge animals that are the same (identical "
            "twins, clones), or add a small number to its diagonal."
        )
    return matrix


def _check_animal(animal: object, animals: int, y: Tensor) -> Tensor:
    if animal is None:
        if len(y) != animals:
            raise ValueError(
                f"`y` has {len(y)} record(s) of {animals} animals: pass `animal`, the animal of "
                "each record."
            )
        return torch.arange(animals, device=y.device)
    with called("animal"):
        codes = check_tensor(animal, {1: "(N,)"})
        check_codes(codes)
    if len(codes) != len(y):
        raise ValueError(
            f"`animal` has {len(codes)} row(s) but `y` has {len(y)}: pass one code for each record."
        )
    if int(codes.max()) >= animals:
        raise ValueError(
            f"`animal` has the code {int(codes.max())}, but there are {animals} "
            f"animals: codes run from 0 to {animals - 1}."
        )
    return codes.long()
