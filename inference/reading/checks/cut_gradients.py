"""Parameters that a model uses by value, but past the gradient: ``.detach()``, ``.item()``.

Ember reads closed forms off values, so it estimates such a parameter all the same; a numerical
update, and Pyro's SVI, see nothing of it. Either way the model's author should know.
"""

import functools
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.reading.matching.arguments import probe_values
from ember.inference.reading.opaque import model_log_prob
from ember.inference.reading.site import Site
from ember.inference.reading.structure import Structure

__all__ = ["cut_parameters"]


Params = Mapping[str, Tensor]
STEP = 1e-5
SHORTER = 0.25  # another step, by which the first must be borne out
SLACK = 1e-3  # relative error of a difference quotient
NOISE = 1e-12  # of a log probability, relative


def cut_parameters(
    structure: Structure, sites: Mapping[str, Site], reached: Mapping[str, frozenset[str]]
) -> dict[str, str]:
    """Parameters with a site that depends on their values, but not by the gradient.

    Args:
        structure: The roles of all sites.
        sites: All sites with a density; what only the model can evaluate is differenced.
        reached: The parameters that each site depends on by the gradient.

    Returns:
        Name of a parameter to that of the first such site.
    """
    cut: dict[str, str] = {}
    asked = {name: site for name, site in sites.items() if site.density is None}
    for name, site in sites.items():
        maps = {} if site.density is None else site.density.maps
        for _, argument in maps.values():
            for source in set(argument.sources) - reached[name]:
                cut.setdefault(source, name)
    at, toward = probe_values(structure, 0), probe_values(structure, 1)
    if asked and _errs(structure, asked, at, toward, list(at)):
        for name, site in asked.items():
            for parameter in at:
                if parameter not in cut and _errs(structure, {name: site}, at, toward, [parameter]):
                    cut[parameter] = name
    return cut


def _errs(
    structure: Structure, sites: Mapping[str, Site], at: Params, toward: Params, moved: list[str]
) -> bool:
    """Whether the gradient of the sites' log probabilities is not their slope along a line."""
    weights = torch.linspace(0.5, 1.5, len(sites), dtype=torch.float64)

    def total(step: float | Tensor) -> Tensor:
        params = {n: v + step * (toward[n] - v) if n in moved else v for n, v in at.items()}
        trace = structure.trace(params)
        each = torch.stack([model_log_prob(site, trace).sum() for site in sites.values()])
        return (weights * each).sum()

    leaf = torch.zeros((), requires_grad=True)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here = total(leaf)
        (slope,) = torch.autograd.grad(here, leaf) if here.requires_grad else (torch.zeros(()),)

    def differs(step: float, other: float) -> bool:
        slack = SLACK * max(abs(other), abs(quotient(step)))
        return abs(other - quotient(step)) > slack + NOISE * abs(float(here.detach())) / step

    @functools.cache
    def quotient(step: float) -> float:
        with torch.no_grad():
            return float(total(step) - total(-step)) / (2.0 * step)

    # Where two steps disagree there is an edge, or rounding, as far in a tail by 1 + erf.
    return differs(STEP, float(slope)) and not differs(SHORTER * STEP, quotient(STEP))
