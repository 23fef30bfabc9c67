"""Models with Gaussian latents run under every inference of Pyro; their priors know no units."""

import math
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.optim.optim import PyroOptim
from torch import Tensor

from ember.inference import EM  # noqa: F401  (brings a bijection onto precision matrices)
from tests.further import further
from tests.inference import brute_force
from tests.inference.dense_gaussian import dense
from tests.models.gaussian_examples import EXAMPLES, Example

each_example = pytest.mark.parametrize("name", EXAMPLES)


def sites_of(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The sites of one run."""
    return poutine.trace(model).get_trace(*args, **kwargs).nodes


def parameters(example: Example, seed: int) -> dict[str, Tensor]:
    """One draw of the parameters from their prior."""
    pyro.set_rng_seed(seed)
    sites = sites_of(example.model, example.data, *example.args, **example.kwargs)
    return {
        name: site["value"]
        for name, site in sites.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and type(site["fn"]).__name__ != "_Subsample"
        and not site["fn"].support.is_discrete
        and name not in example.latents
    }


def objective(example: Example, params: dict[str, Tensor], data: Tensor) -> float:
    """The log posterior density of parameters up to the evidence, by the oracle."""
    call = (data, *example.args)
    evidence = dense(example.model, example.latents, params, *call, **example.kwargs).log_evidence
    prior = brute_force.log_prior(example.model, params, *call, **example.kwargs)
    return float(evidence + prior)


@each_example
def test_sites(name: str) -> None:
    example = EXAMPLES[name]
    call = (example.data, *example.args)
    trace = poutine.trace(example.model).get_trace(*call, **example.kwargs)
    assert torch.as_tensor(trace.log_prob_sum()).isfinite()
    sites: Any = trace.nodes
    assert {*example.latents, *example.powers} <= set(sites)
    for latent in example.latents:
        assert sites[latent]["infer"]["integrate"] == "gaussian"
    drawn = sites_of(poutine.uncondition(example.model), *call, **example.kwargs)
    for site, node in sites.items():
        if node["type"] == "sample" and type(node["fn"]).__name__ != "_Subsample":
            assert drawn[site]["value"].shape == node["value"].shape
            floating = node["value"].is_floating_point()
            assert not floating or node["value"].dtype == example.data.dtype


@each_example
def test_single_precision(name: str) -> None:
    example = EXAMPLES[name]
    args = [_single(each) for each in example.args]
    kwargs = {key: _single(value) for key, value in example.kwargs.items()}
    for site in sites_of(example.model, example.data.float(), *args, **kwargs).values():
        if site["type"] == "sample" and site["value"].is_floating_point():
            assert site["value"].dtype == torch.float32


def _single(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _single(each) for key, each in value.items()}
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@each_example
@pytest.mark.parametrize("move", [(2.0**20, 3.0), *further((1.0, 2.0**10), (2.0**-7, 0.0))])
def test_priors_know_neither_units_nor_origin(name: str, move: tuple[float, float]) -> None:
    """With ``y = a x + b`` the objective changes by the Jacobians alone, at any parameters."""
    factor, shift = move
    example = EXAMPLES[name]
    changes = []
    for seed in (0, 1):
        params = parameters(example, seed)
        moved = dict(params)
        for site, power in example.powers.items():
            moved[site] = factor**power * moved[site]
        for site, unit in example.locations.items():
            moved[site] = moved[site] + shift * unit
        data = factor * example.data + shift
        changes.append(objective(example, moved, data) - objective(example, params, example.data))
    entries = float((~example.data.isnan()).sum())
    for site, power in example.powers.items():
        dim = params[site].shape[-1] if params[site].dim() else 1
        square = site.endswith(("precision", "precisions"))
        free = dim * (dim + 1) / 2 if square else params[site].numel()
        entries += power * free
    for change in changes:
        assert change == pytest.approx(-entries * math.log(factor), abs=1e-5)


@each_example
def test_fifty_steps_of_pyros_own_inference(name: str) -> None:
    example = EXAMPLES[name]
    model = config_enumerate(example.model) if example.discrete else example.model
    exposed = poutine.block(example.model, hide=["assignment"])
    elbo: Any = TraceEnum_ELBO(max_plate_nesting=1) if example.discrete else Trace_ELBO()
    for guide in (AutoNormal(exposed, init_scale=0.01), AutoDelta(exposed)):
        pyro.clear_param_store()
        svi = SVI(model, guide, PyroOptim(torch.optim.Adam, {"lr": 0.01}), elbo)
        losses = [svi.step(example.data, *example.args, **example.kwargs) for _ in range(50)]
        assert torch.tensor(losses).isfinite().all()
        assert sum(losses[-10:]) < sum(losses[:10])


@each_example
def test_vectorised_particles(name: str) -> None:
    """Parameters may have plates to their left."""
    example = EXAMPLES[name]
    nesting = (
        0 if name.startswith(("state", "local", "structural")) else 1
    )  # of the model's own plates
    call = (example.data, *example.args)
    exposed = poutine.block(example.model, hide=["assignment"])
    guide = AutoDelta(exposed)
    losses = []
    for particles in ({}, {"num_particles": 3, "vectorize_particles": True}):
        elbo = TraceEnum_ELBO(
            strict_enumeration_warning=False, max_plate_nesting=nesting, **particles
        )
        # Pyro gives deterministic sites float32 densities, whatever the default.
        shown = poutine.block(example.model, hide=["natural_frequencies", "damping_ratios"])
        model = config_enumerate(shown)
        losses.append(float(elbo.loss(model, guide, *call, **example.kwargs)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("name", ["random intercept", "factor analysis", "local level"])
def test_sampling(name: str) -> None:
    example = EXAMPLES[name]
    mcmc = MCMC(NUTS(example.model, max_tree_depth=3), 3, warmup_steps=2, disable_progbar=True)
    mcmc.run(example.data, *example.args, **example.kwargs)
    samples = mcmc.get_samples()
    assert {*example.latents, *example.powers} <= set(samples)
    assert all(bool(value.isfinite().all()) for value in samples.values())


@each_example
def test_prior_predictive(name: str) -> None:
    example = EXAMPLES[name]
    plain = poutine.uncondition(example.model)
    found = Predictive(plain, num_samples=3)(example.data, *example.args, **example.kwargs)
    for latent in example.latents:
        assert len(found[latent]) == 3
    observed = [site for site in found if site in ("x", "y", "y_0")]
    assert observed
    assert all(bool(found[site].isfinite().all()) for site in observed)
