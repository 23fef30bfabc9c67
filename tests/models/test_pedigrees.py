"""Pedigrees: relationships, inbreeding, Henderson's inverse; the animal model by generations."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from ember.models import animal_model
from ember.models.pedigrees import (
    generations,
    inbreeding,
    inverse_relationship_matrix,
    relationship_matrix,
)
from tests.inference.dense_gaussian import dense
from tests.models.gaussian_examples import DAY, DESIGN, PEDIGREE, Y

# Mrode (2005), Linear Models for the Prediction of Animal Breeding Values, table 2.1.
SIRE = torch.tensor([-1, -1, 0, 0, 3, 4])
DAM = torch.tensor([-1, -1, 1, -1, 2, 1])
PUBLISHED = [
    [1.0, 0.0, 0.5, 0.5, 0.5, 0.25],
    [0.0, 1.0, 0.5, 0.0, 0.25, 0.625],
    [0.5, 0.5, 1.0, 0.25, 0.625, 0.5625],
    [0.5, 0.0, 0.25, 1.0, 0.625, 0.3125],
    [0.5, 0.25, 0.625, 0.625, 1.125, 0.6875],
    [0.25, 0.625, 0.5625, 0.3125, 0.6875, 1.125],
]


def random_pedigree(animals: int, seed: int) -> tuple[Tensor, Tensor]:
    """Parents among the animals before, some unknown, some the same; then shuffled."""
    draw = torch.Generator().manual_seed(seed)
    sire = torch.full((animals,), -1)
    dam = sire.clone()
    for i in range(4, animals):
        sire[i] = torch.randint(-1, i, (), generator=draw)
        dam[i] = torch.randint(-1, i, (), generator=draw)
    order = torch.randperm(animals, generator=draw)
    place = torch.argsort(order)
    moved = (torch.where(p[order] >= 0, place[p[order]], -1) for p in (sire, dam))
    return next(moved), next(moved)


def tabular(sire: Tensor, dam: Tensor) -> np.ndarray:
    """The tabular method, animal by animal."""
    matrix = np.zeros((len(sire), len(sire)))
    done: list[int] = []
    for i in torch.argsort(generations(sire, dam), stable=True).tolist():
        parents = [p for p in (int(sire[i]), int(dam[i])) if p >= 0]
        for j in done:
            matrix[i, j] = matrix[j, i] = 0.5 * sum(matrix[p, j] for p in parents)
        matrix[i, i] = 1.0 + (0.5 * matrix[parents[0], parents[1]] if len(parents) == 2 else 0.0)
        done.append(i)
    return matrix


def test_a_published_relationship_matrix() -> None:
    np.testing.assert_allclose(relationship_matrix(SIRE, DAM), PUBLISHED, atol=1e-15)
    np.testing.assert_allclose(inbreeding(SIRE, DAM), [0.0, 0.0, 0.0, 0.0, 0.125, 0.125])


@pytest.mark.parametrize("seed", range(5))
def test_relationships_by_the_tabular_method(seed: int) -> None:
    sire, dam = random_pedigree(30, seed)
    matrix = relationship_matrix(sire, dam)
    np.testing.assert_allclose(matrix, tabular(sire, dam), atol=1e-13)
    np.testing.assert_allclose(inbreeding(sire, dam), matrix.diagonal() - 1.0, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_hendersons_inverse(seed: int) -> None:
    sire, dam = random_pedigree(30, seed)
    inverse = inverse_relationship_matrix(sire, dam).to_dense()
    eye = inverse @ relationship_matrix(sire, dam)
    np.testing.assert_allclose(eye, torch.eye(30), atol=1e-11)


def test_generations_follow_the_later_parent() -> None:
    assert generations(SIRE, DAM).tolist() == [0, 0, 1, 1, 2, 3]
    assert generations(torch.tensor([2, -1, -1]), torch.tensor([-1, 0, -1])).tolist() == [1, 2, 0]


ERRORS: list[tuple[Any, Any, type[Exception], str]] = [
    ([-1, 0], DAM[:2], TypeError, "`sire` must be a torch.Tensor"),
    (SIRE.double(), DAM, TypeError, "`sire` must hold the codes of parents as integers"),
    (SIRE, DAM[:3], ValueError, "`sire` has 6 row(s) but `dam` has 3"),
    (SIRE, DAM + 5, ValueError, "`dam` has the code 7, but there are 6 animals"),
    (SIRE - 1, DAM, ValueError, "`sire` has the code -2, but there are 6 animals"),
    (torch.tensor([1, 0]), torch.tensor([-1, -1]), ValueError, "is its own ancestor"),
    (torch.tensor([0, 0]), torch.tensor([-1, -1]), ValueError, "is its own ancestor"),
]


@pytest.mark.parametrize(("sire", "dam", "error", "message"), ERRORS)
def test_errors_of_a_pedigree(sire: Any, dam: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        relationship_matrix(sire, dam)


@pytest.mark.parametrize("coordinates", ["centred", "non-centred"])
def test_breeding_values_by_generations_are_a_marginal_normal(coordinates: str) -> None:
    params = {
        "coefficients": torch.tensor([9.0, 1.0], dtype=torch.float64),
        "variance": torch.tensor(0.8, dtype=torch.float64),
        "additive_variance": torch.tensor(1.7, dtype=torch.float64),
    }
    animal = torch.arange(24) % 6
    stem = "breeding" if coordinates == "centred" else "standard"
    kwargs: dict[str, Any] = {**PEDIGREE, "animal": animal, "coordinates": coordinates}
    latents = [f"{stem}_values_{g}" for g in range(3)]
    found = dense(animal_model, latents, params, Y, DAY, **kwargs)
    Z = torch.nn.functional.one_hot(animal, 6).double()
    covariance = 1.7 * Z @ relationship_matrix(**PEDIGREE) @ Z.mT + 0.8 * torch.eye(24).double()
    mean = (DESIGN @ params["coefficients"]).numpy()
    expected = multivariate_normal(mean, covariance.numpy()).logpdf(Y.numpy())
    assert float(found.log_evidence) == pytest.approx(float(expected), rel=1e-11)


CALLS: list[tuple[dict[str, Any], str]] = [
    ({}, "needs either `relationship`, the matrix of all animals, or a pedigree"),
    ({**PEDIGREE, "relationship": torch.eye(6)}, "needs either `relationship`"),
    ({"sire": PEDIGREE["sire"]}, "a pedigree has `sire` and `dam`, and `dam` is not given"),
    ({**PEDIGREE, "animal": None}, "`y` has 24 record(s) of 6 animals: pass `animal`"),
]


@pytest.mark.parametrize(("changed", "message"), CALLS)
def test_errors_of_an_animal_model_by_a_pedigree(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        animal_model(**{"y": Y, "animal": torch.arange(24) % 6, **changed})
