"""The oracle: every joint value of the latent sites, one run of the plain model for each.

Nothing of Ember is used here. A model is run by Pyro with its parameters and one joint value of
all latent sites fixed; the log joint is read off the trace. What follows (log evidence, posterior
marginals, most probable value, EM's expected log joint) is a sum over that list.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints, transform_to

Model = Callable[..., None]
Params = Mapping[str, Tensor]


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Runs models with numbers in double precision, as Ember promises to."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass
class Enumeration:
    """All joint values of the latents, and the log joint of each (parameters' priors left out)."""

    values: dict[str, Tensor]
    log_joint: Tensor
    supports: dict[str, Tensor]

    @property
    def log_evidence(self) -> Tensor:
        return torch.logsumexp(self.log_joint, 0)

    @property
    def weights(self) -> Tensor:
        """Posterior probability of each joint value."""
        return (self.log_joint - self.log_evidence).exp().detach()

    def marginal(self, name: str) -> Tensor:
        """Posterior of one site, ``(*batch, K)``."""
        support = self.supports[name]
        event = support.dim() - 1
        value = self.values[name].unsqueeze(-1 - event)
        hit = value == support
        hit = hit.flatten(hit.dim() - event).all(-1) if event else hit
        weights = self.weights.reshape(-1, *[1] * (hit.dim() - 1))
        return (weights * hit).sum(0)

    def mode(self) -> dict[str, Tensor]:
        """The most probable joint value."""
        best = int(self.log_joint.argmax())
        return {name: value[best] for name, value in self.values.items()}


class Fixed(Messenger):
    """Gives sample and param sites their values, by name."""

    def __init__(self, values: Params) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def is_latent(site: Any) -> bool:
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and type(site["fn"]).__name__ != "_Subsample"
        and site["fn"].support.is_discrete
        and site["fn"].has_enumerate_support
    )


def run(model: Model, params: Params, latents: Params, *args: Any, **kwargs: Any) -> Any:
    """One run of the model with everything fixed."""
    with float64(), poutine.block(), Fixed({**params, **latents}):
        return poutine.trace(model).get_trace(*args, **kwargs)


def enumerate_latents(
    model: Model, params: Params, *args: Any, drop_masked: bool = False, **kwargs: Any
) -> Enumeration:
    """Runs the model once for every joint value of its latent sites.

    Pyro applies ``poutine.mask`` to what lies below an enumerated latent, not to itself. Where
    nothing below depends on it, it sums to one, and may as well be dropped.
    """
    plain = run(model, params, {}, *args, **kwargs)
    names = [name for name, site in plain.nodes.items() if is_latent(site)]
    supports, choices, shapes = {}, [], {}
    for name in names:
        fn = plain.nodes[name]["fn"]
        support = fn.enumerate_support(expand=False)
        supports[name] = support.reshape(len(support), *fn.event_shape)
        shapes[name] = fn.batch_shape
        entries = torch.Size(fn.batch_shape).numel()
        choices.append(list(itertools.product(range(len(support)), repeat=entries)))
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    log_joints = []
    for combination in itertools.product(*choices):
        latents = {}
        for name, indices in zip(names, combination, strict=True):
            support = supports[name]
            latents[name] = support[list(indices)].reshape((*shapes[name], *support.shape[1:]))
        trace = run(model, params, latents, *args, **kwargs)
        total = torch.zeros((), dtype=torch.float64)
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            if site["infer"].get("_deterministic") or name in params:
                continue
            total = total + log_prob_of(site, name in latents, drop_masked)
        log_joints.append(total)
        for name in names:
            values[name].append(latents[name])
    joined = {name: torch.stack(found) for name, found in values.items()}
    return Enumeration(joined, torch.stack(log_joints), supports)


def log_prob_of(site: Any, latent: bool, drop_masked: bool = False) -> Tensor:
    log_prob = torch.as_tensor(site["fn"].log_prob(site["value"]), dtype=torch.float64)
    if site["mask"] is not None and (drop_masked or not latent):
        mask = torch.as_tensor(site["mask"])
        log_prob = torch.where(mask, log_prob, torch.zeros((), dtype=torch.float64))
    return torch.as_tensor((log_prob * site["scale"]).sum())


def log_prior(model: Model, params: Params, *args: Any, **kwargs: Any) -> Tensor:
    """Log prior density of the parameter sites, in the space in which the model declares them."""
    trace = run(model, params, {}, *args, **kwargs)
    total = torch.zeros((), dtype=torch.float64)
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and name in params:
            total = total + log_prob_of(site, latent=False)
    return total


def log_posterior(model: Model, params: Params, *args: Any, **kwargs: Any) -> Tensor:
    evidence = enumerate_latents(model, params, *args, **kwargs).log_evidence
    return evidence + log_prior(model, params, *args, **kwargs)


def expected_log_joint(
    model: Model,
    weights: Tensor,
    params: Params,
    *args: Any,
    objective: str = "map",
    **kwargs: Any,
) -> Tensor:
    """EM's ``Q``: the log joint at ``params``, averaged over given posterior weights."""
    joint = enumerate_latents(model, params, *args, drop_masked=True, **kwargs).log_joint
    total = (weights * torch.where(weights > 0, joint, torch.zeros(()))).sum()
    return total + log_prior(model, params, *args, **kwargs) if objective == "map" else total


# -- free reals ----------------------------------------------------------------------------------


def support_of(site: Any) -> Any:
    if site["type"] == "param":
        return site["kwargs"].get("constraint", constraints.real)
    return site["fn"].support


def supports(model: Model, params: Params, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The support of each parameter."""
    trace = run(model, params, {}, *args, **kwargs)
    return {name: support_of(trace.nodes[name]) for name in params}


@dataclass
class Free:
    """Parameters as one vector of free reals."""

    supports: Mapping[str, Any]
    like: Params

    def flatten(self, params: Params) -> Tensor:
        return torch.cat(
            [transform_to(s).inv(params[n]).reshape(-1) for n, s in self.supports.items()]
        )

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        out, start = {}, 0
        for name, support in self.supports.items():
            transform = transform_to(support)
            shape = transform.inv(self.like[name]).shape
            piece = vector[start : start + shape.numel()].reshape(shape)
            out[name] = transform(piece).reshape(self.like[name].shape)
            start += shape.numel()
        return out


def maximise(function: Callable[[dict[str, Tensor]], Tensor], free: Free) -> dict[str, Tensor]:
    """A maximum by BFGS and Newton steps in free reals; nothing of it is Ember's."""

    def value(vector: Tensor) -> Tensor:
        return -function(free.unflatten(vector))

    def value_and_gradient(flat: Any) -> tuple[float, Any]:
        vector = torch.tensor(flat, dtype=torch.float64, requires_grad=True)
        total = value(vector)
        (gradient,) = torch.autograd.grad(total, vector)
        return float(total.detach()), gradient.numpy()

    start = free.flatten(free.like).detach().numpy()
    found = scipy.optimize.minimize(
        value_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 2000}
    )
    vector = torch.from_numpy(np.asarray(found.x))
    for _ in range(2):
        gradient = torch.autograd.functional.jacobian(value, vector)
        hessian = torch.autograd.functional.hessian(value, vector)
        step = torch.linalg.pinv(hessian, hermitian=True, rtol=1e-10) @ gradient
        vector = vector - step
    return {name: value.detach() for name, value in free.unflatten(vector).items()}


def free_gradient(
    function: Callable[[dict[str, Tensor]], Tensor], params: Params, supports: Mapping[str, Any]
) -> Tensor:
    """Gradient in unconstrained space, as one vector."""
    free = Free(supports, params)
    vector = free.flatten(params).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(free.unflatten(vector)), vector)
    return gradient


# -- rows of one latent: the same oracle for more data -------------------------------------------


@dataclass
class Rows:
    """``log p(x_n, z_n = k)``, shape ``(K, N)``, and the weight of each row."""

    log_joint: Tensor
    scale: Tensor

    @property
    def log_evidence(self) -> Tensor:
        return (self.scale * torch.logsumexp(self.log_joint, 0)).sum()

    @property
    def weights(self) -> Tensor:
        return torch.softmax(self.log_joint, 0).detach()


def rows(model: Model, params: Params, *args: Any, latent: str = "z", **kwargs: Any) -> Rows:
    """One run of the plain model for each state, all rows in that state."""
    plain = run(model, params, {}, *args, **kwargs)
    fn = plain.nodes[latent]["fn"]
    support = fn.enumerate_support(expand=False)
    event = fn.event_shape
    found = []
    for state in support.reshape(len(support), *event):
        latents = {latent: state.expand((*fn.batch_shape, *event))}
        trace = run(model, params, latents, *args, **kwargs)
        total = torch.zeros(fn.batch_shape, dtype=torch.float64)
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            if name in params or site["infer"].get("_deterministic"):
                continue
            log_prob = site["fn"].log_prob(site["value"])
            if site["mask"] is not None:
                log_prob = torch.where(site["mask"], log_prob, torch.zeros(()).to(log_prob))
            total = total + log_prob
        found.append(total)
    scale = torch.as_tensor(plain.nodes[latent]["scale"], dtype=torch.float64)
    return Rows(torch.stack(found), scale.expand(fn.batch_shape))


def expected_rows(
    model: Model, weights: Tensor, params: Params, *args: Any, objective: str, **kwargs: Any
) -> Tensor:
    """EM's ``Q`` for a model of rows."""
    joint = rows(model, params, *args, **kwargs)
    total = (weights * joint.log_joint * joint.scale).sum()
    return total + log_prior(model, params, *args, **kwargs) if objective == "map" else total
