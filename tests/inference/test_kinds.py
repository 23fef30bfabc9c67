"""Kinds of parameters and links: each maximises what it says, and a new one is one class."""

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from ember.inference import EM
from ember.inference.families import kinds, links
from ember.inference.families.exponential_form import (
    ExponentialForm,
    FamilyParameter,
    exponential_form,
)
from ember.inference.families.family import Family, Values
from ember.inference.families.kinds import Kind
from ember.inference.families.links import Link, MatrixLink
from ember.inference.families.verdict import Flaw, Verdict
from ember.inference.numerics.distribution import Distribution
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.supports import bounds

POSITIVE = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
MATRICES = torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.2], [-0.2, 3.0]]], dtype=torch.float64)
VECTORS = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)


# -- links ------------------------------------------------------------------------------------

ROWS: dict[str, tuple[Link, Tensor]] = {
    "identity": (links.IDENTITY, POSITIVE),
    "square": (links.Power(2.0), POSITIVE),
    "inverse square root": (links.Power(-0.5), POSITIVE),
    "exponential": (links.Exponential(-2.0), POSITIVE.log()),
    "sigmoid": (links.SIGMOID, POSITIVE.log()),
    "softmax": (links.SOFTMAX, VECTORS.log_softmax(-1)),
    "precision": (links.PRECISION, MATRICES),
    "covariance": (links.COVARIANCE, MATRICES),
    "scale_tril": (links.SCALE_TRIL, torch.linalg.cholesky(MATRICES)),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_inverse_of_a_link_undoes_it(name: str) -> None:
    link, rows = ROWS[name]
    torch.testing.assert_close(link.inverse(link.forward(rows)), rows, rtol=1e-12, atol=1e-12)


def test_links_of_one_name_are_one_function() -> None:
    assert links.Power(1.0).name == links.IDENTITY.name == links.PRECISION.name
    assert len({link.name for link, _ in ROWS.values()}) == len(ROWS) - 1
    torch.testing.assert_close(links.Power(1.0).forward(POSITIVE), POSITIVE)


@pytest.mark.parametrize("name", ["precision", "covariance", "scale_tril"])
def test_a_matrix_is_multiplied_by_what_its_link_says(name: str) -> None:
    link, rows = ROWS[name]
    assert isinstance(link, MatrixLink)
    factor = torch.tensor(3.0, dtype=torch.float64)
    expected = link.precision_factor(factor) * link.forward(rows)
    torch.testing.assert_close(link.forward(factor * rows), expected)
    root = link.root(rows)
    declared = link.forward(rows) if link.is_precision else link.forward(rows).inverse()
    torch.testing.assert_close(root @ root.mT, declared)


# -- kinds ------------------------------------------------------------------------------------


def quadratic(h: Tensor, precision: Tensor, m: Tensor) -> Tensor:
    return (h * m).sum(-1) - 0.5 * torch.einsum("ri,rij,rj->r", m, precision, m)


Canonical = Callable[..., Tensor]
CANONICAL: dict[str, tuple[Kind, Canonical, list[Tensor]]] = {
    "probability": (
        kinds.PROBABILITY,
        lambda a, b, p: a * p.log() + b * (1.0 - p).log(),
        [POSITIVE, POSITIVE.flip(0)],
    ),
    "sticks": (
        kinds.STICKS,
        lambda a, b, p: (a * p.log() + b * (1.0 - p).log()).sum(-1),
        [VECTORS.abs(), VECTORS.abs().flip(0)],
    ),
    "rate": (kinds.RATE, lambda a, b, r: a * r.log() - b * r, [POSITIVE, POSITIVE.flip(0)]),
    "location": (
        kinds.LOCATION,
        lambda h, j, m: h * m - 0.5 * j * m * m,
        [POSITIVE.log(), POSITIVE],
    ),
    "vector": (kinds.VECTOR, quadratic, [VECTORS, MATRICES]),
    "coefficients": (kinds.COEFFICIENTS, quadratic, [VECTORS, MATRICES]),
    "matrix": (
        kinds.MATRIX,
        lambda n, b, p: 0.5 * n * p.logdet() - 0.5 * (b @ p).diagonal(dim1=-2, dim2=-1).sum(-1),
        [POSITIVE[:2], MATRICES],
    ),
}


@pytest.mark.parametrize("name", CANONICAL)
def test_the_maximiser_of_a_kind_is_where_its_gradient_vanishes(name: str) -> None:
    kind, canonical, coefficients = CANONICAL[name]
    value = kind.best(coefficients).requires_grad_()
    (gradient,) = torch.autograd.grad(canonical(*coefficients, value).sum(), value)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0.0, atol=1e-12)


def test_the_maximiser_of_a_simplex_is_its_shares() -> None:
    counts = torch.tensor([[1.0, 3.0], [0.0, 2.0]], dtype=torch.float64)
    shares = torch.tensor([[0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(kinds.SIMPLEX.maximiser([counts], links.IDENTITY), shares)


# -- a new kind -------------------------------------------------------------------------------


class Spread(Kind):
    """A scale, with the expected log likelihood ``-a log s - b / s^2``."""

    def best(self, coefficients: list[Tensor]) -> Tensor:
        a, b = coefficients
        return (2.0 * b / a).sqrt()

    def degenerate(self, coefficients: list[Tensor], least: Tensor, has_prior: bool) -> Verdict:
        a, b = coefficients
        return Verdict(a <= 0.0, b <= least * a, Flaw.COLLAPSED)

    def is_range(self, support: Constraint) -> bool:
        return bounds(support) == (0.0, None)


class HalfNormalFamily(Family):
    """``T = (1, x^2 / 2)``, whose parameter is the scale itself."""

    kinds = (Spread(),)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (scale,) = values
        return torch.stack([-scale.log(), -(scale**-2.0)], -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]


class Distance(dist.HalfNormal):  # type: ignore[misc]
    """A distribution of this test's own, so that no other test sees the recogniser."""


@exponential_form(Distance)
def _distance(
    base: Distribution, maps: Mapping[str, ArgumentMap], names: Mapping[str, str]
) -> ExponentialForm | str:
    scale = maps["scale"]
    assert scale.table is not None

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        constant = torch.full_like(x, 0.5 * torch.tensor(2.0 / torch.pi).log().item())
        return torch.stack([torch.ones_like(x), 0.5 * x * x], -1), constant

    parameter = FamilyParameter(Spread(), scale.table.untransformed)
    return ExponentialForm(HalfNormalFamily(), (parameter,), (scale.index,), statistics)


def test_a_new_kind_is_one_class() -> None:
    x = torch.tensor([0.5, 2.0, 1.5, 0.1, 3.0], dtype=torch.float64)

    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", Distance(scale), obs=x)

    em = EM(model, "mle", seed=0)
    assert em.explain(x).set_index("site").loc["scale", "M-step"] == "closed form"
    fit = em.fit(x)
    best = x.square().mean().sqrt()
    torch.testing.assert_close(fit.params["scale"], best)
    assert fit.log_likelihood == pytest.approx(float(dist.HalfNormal(best).log_prob(x).sum()))
    # A prior that is registered for no such parameter leaves it to the numerical search.
    table = EM(model).explain(x).set_index("site")
    assert table.loc["scale", "why"] == "Gamma prior is not conjugate to Distance.scale"
