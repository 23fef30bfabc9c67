"""The oracle for masks: what Pyro's own ``TraceEnum_ELBO`` says of the unchanged model."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from tests.inference.brute_force import Fixed, float64

Params = Mapping[str, Tensor]


def enumerated(model: Callable[..., Any], params: Params) -> Callable[..., Any]:
    """The model with its parameters fixed and hidden, their priors with them."""
    fixed: Any = Fixed(params)
    hidden: Any = poutine.block(fixed(config_enumerate(model)), hide=list(params))
    return hidden  # type: ignore[no-any-return]


def nothing(*args: Any, **kwargs: Any) -> None:
    """An empty guide: all latents are summed out in the model."""


def log_evidence(
    model: Callable[..., Any], params: Params, *args: Any, nesting: int = 1, **kwargs: Any
) -> float:
    """``log p(data | params)`` by ``TraceEnum_ELBO``."""
    with float64(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TraceEnum_ELBO found no sample sites")
        elbo = TraceEnum_ELBO(max_plate_nesting=nesting)
        return -float(elbo.loss(enumerated(model, params), nothing, *args, **kwargs))


def posteriors(
    model: Callable[..., Any], params: Params, *args: Any, nesting: int = 1
) -> dict[str, Tensor]:
    """Posterior marginals of every latent, by ``TraceEnum_ELBO.compute_marginals``."""
    with float64(), torch.no_grad():
        elbo = TraceEnum_ELBO(max_plate_nesting=nesting)
        found = elbo.compute_marginals(enumerated(model, params), nothing, *args)
        return {name: fn.probs for name, fn in found.items()}
