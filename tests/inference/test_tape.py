"""Playing back what a model computes: the model's own number, or no tape at all."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from tests.inference.brute_force import float64

X = 8.0 + torch.randn(20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
EDGE = 5.0  # random parameters stay below; the values tried here lie on both sides


def _low(a: Tensor) -> Tensor:
    return 3.0 * a.tanh() + a


def _high(a: Tensor) -> Tensor:
    return 1.5 * a + a.sin()


def branch_on_number(a: Tensor) -> Tensor:
    return _low(a) if float(a[0].detach()) < EDGE else _high(a)


def branch_on_list(a: Tensor) -> Tensor:
    return _low(a) if a.tolist()[0] < EDGE else _high(a)


def branch_on_array(a: Tensor) -> Tensor:
    return _low(a) if a.detach().numpy().max() < EDGE else _high(a)


def branch_on_data(a: Tensor) -> Tensor:
    return _low(a) if a.data[0] < EDGE else _high(a)


def branch_on_error(a: Tensor) -> Tensor:
    try:
        torch.linalg.cholesky(torch.diag(EDGE - a))
    except RuntimeError:
        return _high(a)
    return _low(a)


def branch_on_error_at_random(a: Tensor) -> Tensor:
    try:
        torch.linalg.cholesky(torch.diag(a - EDGE))
    except RuntimeError:
        return _low(a)
    return _high(a)


def count_by_mask(a: Tensor) -> Tensor:
    return a.tanh() + a * (1.0 + 0.2 * len(a[a > EDGE]))


def count_by_nonzero(a: Tensor) -> Tensor:
    return a.tanh() + a * (1.0 + 0.2 * torch.nonzero(a > EDGE).shape[0])


def count_values(a: Tensor) -> Tensor:
    return a.tanh() + a * (1.0 + 0.2 * len(torch.unique(a > EDGE)))


def loop_of_varying_length(a: Tensor) -> Tensor:
    out = a.sin()
    for _ in range(int(a.abs().max()) // 3):
        out = 0.5 * out + a
    return out + a


def write_in_place(a: Tensor) -> Tensor:
    out = torch.zeros(2)
    out[0] = a[0].sin() + a[0]
    out[1] = a[1] + a[0].cos()
    return out.mul_(1.1)


def follow_an_order(a: Tensor) -> Tensor:
    return a.sort().values + torch.tensor([0.0, 3.0])[a.argsort()] + a.sin()


def solve(a: Tensor) -> Tensor:
    matrix = 3.0 * torch.eye(2) + 0.1 * torch.outer(a, a)
    solved: Tensor = torch.linalg.solve(matrix, 10.0 * a)
    spectrum: Tensor = torch.linalg.eigvalsh(matrix)
    return solved + spectrum + 0.1 * a


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return a + a.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        slope: Tensor = gradient * (1.0 + a.cos())
        return slope


def own_function(a: Tensor) -> Tensor:
    result: Tensor = _Sine.apply(a)  # type: ignore[no-untyped-call]
    return result


WAYS = (
    branch_on_number, branch_on_list, branch_on_array, branch_on_data, branch_on_error,
    branch_on_error_at_random, count_by_mask, count_by_nonzero, count_values,
    loop_of_varying_length, write_in_place, follow_an_order, solve, own_function,
)  # fmt: skip


@pytest.mark.parametrize("compute", WAYS, ids=lambda way: way.__name__)
def test_log_likelihood_is_that_of_the_model_wherever_it_is_asked(
    compute: Callable[[Tensor], Tensor],
) -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        a = pyro.sample("a", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(compute(a)[z], 1.0), obs=x)

    em, weights = EM(model), torch.tensor([0.3, 0.7], dtype=torch.float64)
    for at in ([1.0, 2.0], [6.0, 1.0], [8.0, 9.0], [-3.0, 6.0], [4.9, -20.0]):
        a = torch.tensor(at, dtype=torch.float64)
        found = em.e_step({"a": a, "weights": weights}, X).log_likelihood
        with float64():
            residuals = X.unsqueeze(-1) - compute(a)
        each = weights.log() - 0.5 * residuals.square() - 0.5 * math.log(2.0 * math.pi)
        assert found == pytest.approx(float(each.logsumexp(-1).sum()), rel=1e-10)
