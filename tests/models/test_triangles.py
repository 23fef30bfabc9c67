"""A triangle stands for rows: default priors of regressions are those of all rows, in pieces."""

import functools
import itertools
import operator

import pytest
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from ember.models.parts.orthonormal_design import has_level, left_variance, orthonormal
from ember.models.parts.triangles import constants, log_sum, triangle


def covariates(rows: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """A constant, columns of unlike units and origins, and one that two others determine."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    columns = [torch.full((rows,), 3.0).double(), 1e6 + z[:, 0], 1e-7 * z[:, 1], z[:, 0] + z[:, 2]]
    design = torch.stack([*columns, columns[3] - columns[1]], 1)
    y = 1e3 + 2.0 * z[:, 0] - z[:, 1] + 0.5 * z[:, 2].square()
    return design, y, torch.arange(rows).double() % 4


def weighted(design: Tensor, frequency: Tensor) -> Tensor:
    """The covariance of the columns, by the long way."""
    weights = (frequency / frequency.sum()).unsqueeze(-1)
    centred = design - (weights * design).sum(0)
    return (weights * centred).mT @ centred


class Summed(Messenger):
    """Answers with moments of pieces, in the order in which a function asks for them."""

    def __init__(self, answers: list[object]) -> None:
        super().__init__()
        self.answers = iter(answers)

    def _pyro_moments(self, msg: Message[..., object]) -> None:
        msg["value"], msg["done"] = next(self.answers), True


def test_the_triangle_has_the_products_of_the_rows() -> None:
    design, _, frequency = covariates()
    found = triangle(design[:, 1:4], frequency)
    truth = frequency.sum() * weighted(design[:, 1:4], frequency)
    products = found.about_mean.mT @ found.about_mean
    assert torch.allclose(products, truth, rtol=1e-8, atol=1e-20)
    mean = (frequency / frequency.sum()) @ design[:, 1:4]
    assert torch.allclose(found.mean, mean, rtol=1e-12, atol=1e-20)
    assert len(found.factor) == 4


@pytest.mark.parametrize("bounds", [[0, 1, 2, 60], [0, 30, 60], [0, 7, 7, 41, 60]])
@pytest.mark.parametrize("width", [4, 5])
def test_pieces_say_of_the_design_what_all_rows_say(bounds: list[int], width: int) -> None:
    design, y, frequency = covariates()
    design = design[:, :width]
    pieces = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    both = torch.cat([design, y.unsqueeze(-1)], 1)

    def sums(function: object, rows: Tensor) -> object:
        assert callable(function)
        each = [function(rows[piece], frequency[piece]) for piece in pieces]
        return functools.reduce(operator.add, each)

    whole, left = orthonormal(design, frequency), left_variance(y, design, frequency)
    with Summed([sums(constants, design), sums(triangle, design)]):
        inner = orthonormal(design[:1], frequency[:1])
    assert inner.level is not None
    assert whole.level is not None
    assert torch.equal(inner.level, whole.level)
    assert torch.allclose(design @ inner.inverse, design @ whole.inverse, atol=1e-8)
    with Summed([sums(triangle, both), sums(constants, design)]):
        found = left_variance(y[:1], design[:1], frequency[:1])
    assert float(found) == pytest.approx(float(left), rel=1e-8)


def test_the_coordinates_are_orthonormal_and_about_the_means() -> None:
    design, _, frequency = covariates()
    design = design[:, :4]
    found = orthonormal(design, frequency)
    rows = design @ found.inverse
    weights = frequency / frequency.sum()
    assert torch.allclose(
        (weights.unsqueeze(-1) * rows).mT @ rows, torch.eye(4).double(), atol=1e-6
    )
    assert found.level is not None
    assert torch.allclose(design @ found.level, torch.ones(60).double())


def test_the_variance_that_is_left_is_that_of_least_squares() -> None:
    design, y, frequency = covariates()
    roots = frequency.sqrt()
    columns = torch.cat([torch.ones(60, 1).double(), design[:, [3]], design[:, [4]] + 1e6], 1)
    columns = torch.cat([columns, 1e7 * design[:, [2]]], 1)
    best = torch.linalg.lstsq(roots.unsqueeze(-1) * columns, (roots * (y - 1e3)).unsqueeze(-1))
    rest = y - 1e3 - (columns @ best.solution).squeeze(-1)
    truth = float((frequency * rest.square()).sum() / frequency.sum())
    assert float(left_variance(y, design, frequency)) == pytest.approx(truth, rel=1e-6)


def test_a_column_is_constant_if_it_is_so_in_all_pieces() -> None:
    ones, rows = torch.ones(4, 1).double(), torch.arange(4.0).double().unsqueeze(-1)
    every = torch.ones(4).double()
    assert has_level(ones, every)
    assert not has_level(rows, every)
    assert not has_level(0.0 * ones, every)
    together = constants(ones, every) + constants(2.0 * ones, every)
    assert together.value is not None
    assert bool(together.value.isnan().all())
    none = constants(rows, 0.0 * every) + constants(ones, every)
    assert none.value is not None
    assert float(none.value) == 1.0


def test_rows_without_weight_are_no_rows() -> None:
    design, _, frequency = covariates()
    empty = triangle(design, 0.0 * frequency)
    full = triangle(design, frequency)
    for both in (empty + full, full + empty):
        assert torch.allclose(both.about_mean.mT @ both.about_mean,
                              full.about_mean.mT @ full.about_mean)  # fmt: skip


def test_sums_of_exponentials_add_where_single_ones_overflow() -> None:
    numbers, frequency = torch.tensor([800.0, 799.0, 1.0, 2.0]).double(), torch.arange(4.0).double()
    whole = log_sum(numbers, frequency).value
    parts = log_sum(numbers[:2], frequency[:2]) + log_sum(numbers[2:], frequency[2:])
    assert float(parts.value) == pytest.approx(float(whole), rel=1e-14)
