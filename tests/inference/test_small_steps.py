"""What a step on little data leaves out, or does once: the results are those of the long way."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.factors.exponential import statistics_of
from ember.inference.families.known_densities import KnownDensity
from ember.inference.maximisation.m_step import MStep
from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.optimality.curvature import Curvature
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.reading.known_factors import LARGE
from ember.inference.reading.modes import Modes
from ember.models import gaussian_mixture

MATRIX = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
KNOWN = [
    dist.Dirichlet(torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)),
    dist.Beta(torch.tensor([0.5, 3.0], dtype=torch.float64), torch.tensor(2.0).double()),
    dist.Gamma(torch.tensor([0.5, 3.0], dtype=torch.float64), torch.tensor(2.0).double()),
    dist.Exponential(torch.tensor([0.5, 3.0], dtype=torch.float64)),
    dist.Wishart(torch.tensor([3.0, 5.5], dtype=torch.float64), precision_matrix=MATRIX),
]


def points() -> Tensor:
    torch.manual_seed(1)
    return torch.tensor([[0.0, 0.0], [4.0, 1.0]]).repeat(20, 1) + torch.randn(40, 2)


@pytest.mark.parametrize("fn", KNOWN, ids=lambda fn: type(fn).__name__)
def test_known_densities_are_those_of_torch(fn: dist.TorchDistribution) -> None:
    known = KnownDensity.of(fn)
    assert known is not None
    torch.manual_seed(0)
    if isinstance(fn, dist.Wishart):  # torch warns of every draw
        free = torch.randn(7, *fn.shape(), dtype=torch.float64)
        value = free @ free.mT + MATRIX
    else:
        value = fn.sample((7,))
    truth = fn.log_prob(value)
    assert known.log_prob(value).shape == truth.shape
    assert torch.allclose(known.log_prob(value), truth, rtol=1e-12, atol=1e-12)


def test_a_density_of_ones_own_is_asked_as_it_is() -> None:
    class Bent(dist.Gamma):
        def log_prob(self, value: Tensor) -> Tensor:
            return value.square()

    assert KnownDensity.of(Bent(torch.tensor(2.0), torch.tensor(1.0))) is None
    assert KnownDensity.of(dist.Gumbel(torch.tensor(2.0), torch.tensor(1.0))) is None


def test_shapes_broadcast_as_those_of_torch() -> None:
    shapes = [(), (1,), (2,), (3,), (0,), (2, 1), (1, 3), (2, 3), (4, 1, 3)]
    for each in itertools.product(shapes, repeat=3):
        try:
            truth = torch.broadcast_shapes(*each)
        except RuntimeError:
            with pytest.raises(RuntimeError, match="do not broadcast"):
                broadcast_shapes(*each)
        else:
            assert broadcast_shapes(*each) == truth
    assert broadcast_shapes() == torch.Size()


def test_runs_have_the_modes_that_the_first_one_had_a_use_for() -> None:
    eye = torch.eye(LARGE, dtype=torch.float64)

    def plain(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def narrow(x: Tensor) -> None:
        plain(x + torch.zeros(len(x), dtype=torch.float32))

    def large(x: Tensor) -> None:
        variance = pyro.param("variance", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("x", dist.MultivariateNormal(0.0 * x, variance * eye), obs=x)

    x = torch.linspace(-1.0, 1.0, LARGE, dtype=torch.float64)
    found = {
        model.__name__: EM(model, "mle").plan(x).structure.modes for model in (plain, narrow, large)
    }
    assert found == {
        "plain": Modes(promotes=False, remembers=False),
        "narrow": Modes(promotes=True, remembers=False),
        "large": Modes(promotes=False, remembers=True),
    }


def test_a_prior_whose_entries_are_its_cells_has_the_statistics_of_any_other() -> None:
    em = EM(gaussian_mixture, seed=0)
    plan = em.plan(points(), components=2)
    params, prior = em.initialise(plan), plan.prior.sites["locs"]
    assert prior.has_own_cells
    tied, statistics = plan.prior.statistics("locs", params)
    assert prior.tied is not None
    reference = prior.tied.locations(params)[prior.cells]
    longer, _ = statistics_of(prior.site, params["locs"], reference)
    assert torch.equal(statistics, longer)
    scatter = tied.contribution(1, statistics, params)
    family = tied.family.contribution(1, statistics, tied.parameter_values(params))
    assert all(torch.allclose(*pair) for pair in zip(scatter, family, strict=True))


def test_rows_of_the_information_are_the_same_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    em = EM(gaussian_mixture, seed=0)
    plan = em.plan(points(), components=2)
    statistics = em.e_step(em.initialise(plan), plan)
    assert isinstance(statistics.m_step, MStep)
    coordinates = Coordinates(plan.structure.parameters)

    def matrix() -> Tensor:
        found = Curvature.at(coordinates, statistics)
        assert found is not None
        assert found.matrix is not None
        return found.matrix

    def refuse(function: object) -> object:
        raise RuntimeError("some operation has no rule for batches")

    together = matrix()
    monkeypatch.setattr(torch.func, "vmap", refuse)
    assert torch.allclose(together, matrix(), rtol=1e-12, atol=1e-12)
