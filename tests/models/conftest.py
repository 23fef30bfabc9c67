"""What the tests of all models need: log joints, log likelihoods and losses through Pyro alone."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

PARAMETERS = (
    "weights", "precisions", "locs", "rates", "probs", "initial", "transition",
    "coefficients", "gating", "concentrations", "inflation", "occurrence", "precision", "df",
)  # fmt: skip


def is_latent(name: str) -> bool:
    return name.startswith(("assignment", "state_", "structural"))


class Joint(Protocol):
    def __call__(
        self, model: Any, values: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> Tensor: ...


class Draw(Protocol):
    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]: ...


class Loss(Protocol):
    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> float: ...


@pytest.fixture
def prior_draw() -> Draw:
    """One draw of the parameter sites from their prior."""

    def draw(model: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
        return {
            name: site["value"].detach()
            for name, site in trace.nodes.items()
            if name.startswith(PARAMETERS)
        }

    return draw


@pytest.fixture
def log_joint() -> Joint:
    """The log density of everything, with the given values of parameters and latents."""

    def joint(model: Any, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        trace = poutine.trace(poutine.condition(model, dict(values))).get_trace(*args, **kwargs)
        assert set(values) <= set(trace.nodes)
        return torch.as_tensor(trace.log_prob_sum())

    return joint


@pytest.fixture
def log_likelihood() -> Joint:
    """The log density of the data given the parameters, by Pyro's enumeration of the latents."""

    def likelihood(model: Any, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        given = poutine.condition(
            model, {name: value.clone().requires_grad_() for name, value in values.items()}
        )
        hidden = poutine.block(given, hide=list(values))
        elbo = TraceEnum_ELBO(strict_enumeration_warning=False, max_plate_nesting=1)
        loss = elbo.differentiable_loss(
            config_enumerate(hidden), lambda *args, **kwargs: None, *args, **kwargs
        )
        return -torch.as_tensor(loss)

    return likelihood


@pytest.fixture
def check_guides() -> Callable[..., None]:
    """The model runs under AutoDelta and AutoNormal, plain and with vectorised particles."""

    def check(model: Any, *args: Any, **kwargs: Any) -> None:
        pyro.clear_param_store()
        exposed = poutine.block(model, hide_fn=lambda msg: is_latent(str(msg["name"])))
        losses = []
        guide = AutoDelta(exposed)
        for particles in ({}, {"num_particles": 3, "vectorize_particles": True}):
            elbo = TraceEnum_ELBO(
                strict_enumeration_warning=False, max_plate_nesting=1, **particles
            )
            losses.append(float(elbo.loss(config_enumerate(model), guide, *args, **kwargs)))
        assert torch.isfinite(torch.tensor(losses)).all()
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)  # a delta's particles are all alike
        if kwargs.get("covariance", "") in ("full", "tied"):
            return  # torch has no bijection onto positive-definite matrices: Ember registers one
        normal = AutoNormal(exposed, init_scale=0.01)
        elbo = TraceEnum_ELBO(
            strict_enumeration_warning=False,
            max_plate_nesting=1,
            num_particles=3,
            vectorize_particles=True,
        )
        assert abs(elbo.loss(config_enumerate(model), normal, *args, **kwargs)) < float("inf")

    return check


@pytest.fixture
def check_sites() -> Callable[..., None]:
    """The sites have the given names and shapes, those of floats the given dtype."""

    def check(
        shapes: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
        model: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
        found = {
            name: site["value"]
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
        }
        assert {name: tuple(value.shape) for name, value in found.items()} == shapes
        floats = {value.dtype for value in found.values() if value.is_floating_point()}
        assert floats == {dtype}
        assert torch.as_tensor(trace.log_prob_sum()).isfinite()
        drawn = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
        for name in shapes:
            assert drawn.nodes[name]["value"].shape == shapes[name]
            assert not drawn.nodes[name]["is_observed"]

    return check


@pytest.fixture(autouse=True)
def _seed() -> None:
    pyro.set_rng_seed(1)
