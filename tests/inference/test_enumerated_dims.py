"""Values of a latent that leave the dim in which Pyro enumerates them are refused, not summed."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

from ember.inference import EM, SVI
from tests.inference import pyro_evidence

X = torch.tensor([0.1, -0.4, 0.8, 2.1, 1.7, 2.9, 2.2, 1.5, 2.4, 1.9], dtype=torch.float64)
RATES = torch.tensor([0.0, 2.0], dtype=torch.float64)
SHARES = torch.full((10,), 0.1, dtype=torch.float64)


def change_point(x: Tensor, misplaced: bool) -> None:
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    change: Any = pyro.sample("change", dist.Categorical(SHARES))
    before = torch.arange(10) < (change.unsqueeze(-1) if misplaced else change)
    with pyro.plate("rows", 10):
        pyro.sample("x", dist.Normal(torch.where(before, locs[0], locs[1]), 1.0), obs=x)


def test_a_change_point_in_its_own_dim() -> None:
    params = {"locs": RATES}
    truth = pyro_evidence.log_evidence(change_point, params, X, False)
    by_hand = (
        torch.stack(
            [
                dist.Normal(RATES[(torch.arange(10) >= s).long()], 1.0).log_prob(X).sum()
                for s in range(10)
            ]
        ).logsumexp(0)
        - torch.tensor(10.0).log()
    )
    assert truth == pytest.approx(float(by_hand), rel=1e-6)
    stats = EM(change_point).e_step(params, X, False)
    assert stats.log_likelihood == pytest.approx(truth, rel=1e-12)


def unsqueezed(z: Any, locs: Tensor) -> Any:
    return locs[z.unsqueeze(-1)]


def squeezed(z: Any, locs: Tensor) -> Any:
    return locs[z.reshape(-1)]


def summed(z: Any, locs: Tensor) -> Any:
    return locs[z] + z.sum(0)


def compared_with_the_largest(z: Any, locs: Tensor) -> Any:
    return locs[(z == z.max()).long()]


def turned(z: Any, locs: Tensor) -> Any:
    return locs[z.flip(0)]


def cumulated(z: Any, locs: Tensor) -> Any:
    return locs[z] + z.cumsum(0)


def switched_by_their_sum(z: Any, locs: Tensor) -> Any:
    return (1.0 if z.sum() > 4 else -1.0) * locs[z]


WAYS = [
    unsqueezed,
    squeezed,
    summed,
    compared_with_the_largest,
    turned,
    cumulated,
    switched_by_their_sum,
]


@pytest.mark.parametrize("method", [EM, SVI])
@pytest.mark.parametrize("way", WAYS)
def test_values_in_a_wrong_dim_are_refused(way: Callable[..., Any], method: Any) -> None:
    def model(x: Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
        with pyro.plate("rows", 3):
            z: Any = pyro.sample("z", dist.Categorical(torch.tensor([0.25, 0.5, 0.25])))
            pyro.sample("x", dist.Normal(way(z, locs), 1.0), obs=x)

    with pytest.raises(ValueError, match=r"site 'x' uses the values of .*'z'.* dim") as error:
        method(model).fit(X[:3])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [EM, SVI])
def test_pyro_refuses_the_change_point_too(method: Any) -> None:
    with pytest.raises(ValueError, match="Invalid tensor shape"):
        pyro_evidence.log_evidence(change_point, {"locs": RATES}, X, True)
    with pytest.raises(ValueError, match=r"site 'x'.*'change'.*wrong dim.*\(10, 1, 10\)"):
        method(change_point).fit(X, True)


def test_values_in_the_dim_of_another_latent_are_refused() -> None:
    def model(x: Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
        with pyro.plate("rows", len(x)):
            a: Any = pyro.sample("a", dist.Categorical(torch.tensor([0.25, 0.5, 0.25])))
            b: Any = pyro.sample("b", dist.Categorical(torch.tensor([0.5, 0.25, 0.25])))
            pyro.sample("x", dist.Normal(locs[a.unsqueeze(-2)] + b, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"site 'x' uses the values of .*'a', 'b'"):
        EM(model).fit(X)


def test_a_latent_whose_prior_takes_another_in_a_wrong_dim() -> None:
    def model(x: Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        shares = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
        with pyro.plate("rows", 2):
            a: Any = pyro.sample("a", dist.Bernoulli(0.25))
            b: Any = pyro.sample("b", dist.Categorical(shares[a.reshape(-1).long()]))
            pyro.sample("x", dist.Normal(locs[b], 1.0), obs=x)

    with pytest.raises(ValueError, match=r"site 'b' uses the values of"):
        EM(model).fit(X[:2])


def test_event_dims_made_of_values_are_refused() -> None:
    def model(x: Tensor) -> None:
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("rows", 2):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.25, 0.75])))
            pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"'x'"):
        EM(model).fit(torch.zeros(2, 1, dtype=torch.float64))


def vindexed(x: Tensor) -> None:
    table = pyro.sample("table", dist.Normal(0.0, 3.0).expand([2, 3, 4]).to_event(3))
    with pyro.plate("groups", 5, dim=-2):
        a: Any = pyro.sample("a", dist.Bernoulli(0.25))
        with pyro.plate("rows", 2, dim=-1):
            b = pyro.sample("b", dist.Categorical(torch.ones(3) / 3))
            locs = Vindex(table)[a.long(), b, :]
            pyro.sample("x", dist.Normal(locs, 1.0).to_event(1), obs=x)


def rebuilt(x: Tensor) -> None:
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z: Any = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.25, 0.75])))
        w: Any = pyro.sample("w", dist.Bernoulli(0.25))
        pyro.sample("x", dist.Normal((z * locs).sum(-1) + w * locs[0], 1.0), obs=x)


@pytest.mark.parametrize(("model", "shape"), [(vindexed, (5, 2, 4)), (rebuilt, (10,))])
def test_values_combined_as_they_should_be(model: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    fit = EM(model, seed=0, max_iter=200).fit(x)
    truth = pyro_evidence.log_evidence(model, fit.params, x, nesting=2)
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-10)
