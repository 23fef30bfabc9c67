"""Sites that only the model can evaluate: their log probability, and what they depend on."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.numerics.gamma_ratios import exact_log_prob
from ember.inference.numerics.observed_density import observed_log_prob
from ember.inference.reading.site import Site, fill_masked, finish
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import unwrap

__all__ = ["factor_dims", "model_dependencies", "model_log_prob"]


def model_dependencies(structure: Structure, sites: Mapping[str, Site]) -> dict[str, set[str]]:
    """Which parameters the sites that only the model can evaluate depend on."""
    if not sites:
        return {}
    with torch.enable_grad():
        params = {
            name: p.start.clone().requires_grad_() for name, p in structure.parameters.items()
        }
        trace = structure.trace(params)
        dependencies: dict[str, set[str]] = {}
        for name, site in sites.items():
            others = {n: value for n, value in params.items() if n != name}
            total = model_log_prob(site, trace).sum()
            if not total.requires_grad or not others:
                dependencies[name] = set()
                continue
            gradients = torch.autograd.grad(
                total, list(others.values()), allow_unused=True, retain_graph=True
            )
            dependencies[name] = {
                n for n, g in zip(others, gradients, strict=True) if g is not None
            }
    return dependencies


def factor_dims(site: Site, trace: Trace) -> tuple[str, ...]:
    """The named dims of a site's log probability, from one evaluation."""
    with torch.no_grad():
        if site.density is not None:
            params = {
                n: node["value"]
                for n, node in trace.nodes.items()
                if node["type"] in ("sample", "param") and isinstance(node["value"], Tensor)
            }
            log_prob = site.density.log_prob(params, site.value)
        else:
            log_prob = model_log_prob(site, trace)
    return site.layout.pack(log_prob)[1]


def model_log_prob(site: Site, trace: Trace) -> Tensor:
    """A site's log probability from a run of the model, masked latents summing to one."""
    node = trace.nodes[site.name]
    unwrapped = unwrap(node["fn"])
    value = fill_masked(node["value"], site.mask, len(unwrapped.base.event_shape))
    # A latent has no gaps: to look for some would hang what is recorded on its values.
    density = observed_log_prob if node["is_observed"] else exact_log_prob
    log_prob = density(unwrapped.base, value)
    return finish(log_prob, site.mask, site.inner_shape, site.masked_log_prob)
