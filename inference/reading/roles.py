"""The role of a site: *observed* has data, *latent* is integrated, *parameter* is maximised.

Discrete latents are summed over. A continuous site is a parameter unless it is asked for, or found,
as a Gaussian latent or as one with a conjugate prior, which are integrated exactly, or asked for as
a latent on nodes.
"""

from collections.abc import Mapping
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints, transform_to

from ember.inference.families.conjugate_latents import conjugate_family
from ember.inference.inputs.arguments import Model
from ember.inference.numerics.distribution import Distribution
from ember.inference.parameters.parameter import Parameter
from ember.inference.parameters.supports import shown
from ember.inference.reading.nodes import asks_for_nodes
from ember.inference.reading.runs import is_continuous
from ember.inference.reading.trace import TraceNode
from ember.inference.reading.unwrapping import unwrap

__all__ = ["param_parameter", "role_of", "sample_parameter", "wish_for"]


CONJUGATE = ("conjugate", "scale-mixture")


def wish_for(name: str, site: TraceNode, integrate: Mapping[str, object]) -> object:
    """How a site asks to be integrated: the wishes of the fit count before those of the model."""
    return integrate.get(name, site["infer"].get("integrate"))


def role_of(name: str, site: TraceNode, integrate: Mapping[str, object]) -> str:
    """The role of a sample site.

    Returns:
        "observed", "latent" (and discrete), "gaussian", "conjugate", "nodes" or "parameter".

    Raises:
        ValueError: If a latent site cannot be integrated as it asks; the message names it.
    """
    if site["is_observed"]:
        return "observed"
    fn = site["fn"]
    how = wish_for(name, site, integrate)
    if is_continuous(fn):
        return "parameter" if how is None else _continuous_role(name, fn, how)
    if how not in (None, "enumeration"):
        raise ValueError(
            f"site '{name}' is discrete and asks to be integrated by {how!r}; discrete latents are "
            "summed over exactly: drop the request."
        )
    if isinstance(fn, dist.Delta):
        raise ValueError(
            f"site '{name}' samples from a Delta; use pyro.deterministic for a computed value, or "
            "pyro.param for one to be estimated."
        )
    if not fn.has_enumerate_support:
        raise ValueError(
            f"latent site '{name}' ({type(fn).__name__}) has no finite support to sum over; use a "
            "Categorical over a truncated range, or observe it."
        )
    return "latent"


def _continuous_role(name: str, fn: Distribution, how: object) -> str:
    """The role of a continuous site that asks to be integrated."""
    if asks_for_nodes(how):
        return "nodes"
    if how in CONJUGATE:
        return _conjugate_role(name, fn, how)
    if how != "gaussian":
        raise ValueError(
            f"site '{name}' asks to be integrated by {how!r}, which is not known; ask for "
            "'quadrature' or 'monte-carlo', which take sites of up to ten dimensions, 'gaussian', "
            "which takes normal sites that others read linearly, or 'conjugate', or estimate the "
            f"site as a parameter (EM(model, integrate={{'{name}': None}}))."
        )
    base = unwrap(fn).base
    if type(base) not in (dist.Normal, dist.MultivariateNormal):
        raise ValueError(
            f"site '{name}' ({type(base).__name__}) asks to be integrated by 'gaussian', but it is "
            "neither Normal nor MultivariateNormal; estimate it as a parameter with "
            f"EM(model, integrate={{'{name}': None}})."
        )
    return "gaussian"


def _conjugate_role(name: str, fn: Distribution, how: object) -> str:
    """The role of a site that asks to be integrated by its conjugate prior."""
    base = unwrap(fn).base
    if conjugate_family(base) is None:
        raise ValueError(
            f"site '{name}' ({type(base).__name__}) asks to be integrated by {how!r}, but its "
            "prior is neither Gamma nor InverseGamma, Exponential, Beta or Dirichlet; estimate it "
            f"as a parameter with EM(model, integrate={{'{name}': None}})."
        )
    return "conjugate"


def param_parameter(name: str, site: TraceNode, model: Model) -> Parameter:
    """The parameter of a ``pyro.param`` statement."""
    # A PyroModule states its constraints to the parameter store, not at the site.
    given = site["kwargs"].get("constraint", constraints.real)
    support = cast(constraints.Constraint, pyro.get_param_store()._constraints.get(name, given))
    if "$$$" in name:
        module = name.split("$$$")[0]
        raise ValueError(
            f"the model registers the torch module '{module}' with pyro.module, whose weights "
            "cannot be set from outside; make it a pyro.nn.PyroModule (for instance "
            "PyroModule[torch.nn.Linear](...)), called inside the model."
        )
    value = site["value"].detach().clone()
    value = value.double() if value.is_floating_point() else value
    # A PyroParam is registered as "..._unconstrained", an ordinary parameter by its own name.
    is_parameter = isinstance(model, torch.nn.Module) and name in dict(model.named_parameters())
    return Parameter(name, support, value.shape, (), False, value, is_module_parameter=is_parameter)


def sample_parameter(name: str, site: TraceNode, plates: tuple[str, ...]) -> Parameter:
    """The parameter of a ``pyro.sample`` statement, which has a prior."""
    fn, value = site["fn"], site["value"]
    try:
        transform_to(fn.support)
    except NotImplementedError as error:
        raise ValueError(
            f"parameter site '{name}' has support {shown(fn.support)}, onto which no transform "
            "is known; "
            "reparameterise the site, or register one with torch's transform_to."
        ) from error
    return Parameter(name, fn.support, value.shape, plates, has_prior=True, start=value)
