"""The oracle of Gaussian latents: the log joint as one dense quadratic, by automatic derivatives.

Nothing of Ember is used here. A model is run by Pyro with its parameters fixed and its Gaussian
latents set from one flat vector ``z``. If they are Gaussian given the parameters, the log joint is

    f(z) = f(m) - (z - m)' P (z - m) / 2,

so its gradient and Hessian at one point give the mode ``m``, the precision ``P`` and, by
``f(m) + (n log 2 pi - log det P) / 2``, the log evidence. Discrete latents are enumerated: each of
their joint values has a quadratic of its own, and the posterior is the mixture of these Gaussians.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from tests.inference.brute_force import (
    Free,
    Model,
    Params,
    is_latent,
    log_prior,
    log_prob_of,
    run,
    supports,
)

__all__ = ["Dense", "NotGaussian", "dense", "free_objective", "log_evidence", "maximum"]


class NotGaussian(Exception):
    """The log joint is no quadratic of the latents with a negative definite Hessian."""


@dataclass
class Dense:
    """The posterior of Gaussian latents, a mixture over the joint values of the discrete ones.

    Attributes:
        shapes: The batch and the event shape of each Gaussian latent, in the order of ``z``.
        log_joint: The log evidence of each joint value of the discrete latents (M,).
        means: The mean of ``z`` (M, n).
        covariances: Its covariance (M, n, n).
        discrete: The joint values of each discrete latent (M, *batch).
        supports: What each discrete latent can be.
    """

    shapes: dict[str, tuple[torch.Size, torch.Size]]
    log_joint: Tensor
    means: Tensor
    covariances: Tensor
    discrete: dict[str, Tensor]
    supports: dict[str, Tensor]

    @property
    def log_evidence(self) -> Tensor:
        return torch.logsumexp(self.log_joint, 0)

    @property
    def weights(self) -> Tensor:
        """The posterior probability of each joint value of the discrete latents (M,)."""
        return torch.softmax(self.log_joint, 0)

    @property
    def flat_mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def flat_covariance(self) -> Tensor:
        """The covariance of ``z``: within the joint values, and between their means."""
        apart = self.means - self.flat_mean
        within = torch.einsum("m,mij->ij", self.weights, self.covariances)
        return within + torch.einsum("m,mi,mj->ij", self.weights, apart, apart)

    def mean(self, name: str) -> Tensor:
        """The posterior mean of a latent, in its own shape."""
        return self.flat_mean[self._place(name)].reshape((*self._batch(name), *self._event(name)))

    def covariance(self, name: str) -> Tensor:
        """The posterior covariance of each event, ``(*batch, D, D)``; (*batch, 1, 1) of numbers."""
        place, size = self._place(name), max(self._event(name).numel(), 1)
        block = self.flat_covariance[place, place]
        count = block.shape[0] // size
        blocks = block.reshape(count, size, count, size)
        index = torch.arange(count)
        return blocks[index, :, index].reshape(*self._batch(name), size, size)

    def variance(self, name: str) -> Tensor:
        """The posterior variance of each entry, in the latent's own shape."""
        place = self._place(name)
        variances = self.flat_covariance[place, place].diagonal()
        return variances.reshape((*self._batch(name), *self._event(name)))

    def cross_covariance(self, one: str, other: str) -> Tensor:
        """The posterior covariance of all entries of two latents, flat."""
        return self.flat_covariance[self._place(one), self._place(other)]

    def marginal(self, name: str) -> Tensor:
        """The posterior of a discrete latent (*batch, K)."""
        value, support = self.discrete[name], self.supports[name]
        hit = value.unsqueeze(-1) == support
        return torch.einsum("m,m...->...", self.weights, hit.to(self.weights))

    def expectation(self, quadratic: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """The expected value of any quadratic of the latents, of whatever shape it is.

        The quadratic is taken at ``m``, and at ``m + l`` and ``m - l`` for each column ``l`` of a
        root of the covariance: ``E q = q(m) + sum_l (q(m + l) + q(m - l) - 2 q(m)) / 2``.
        """
        total: Tensor | float = 0.0
        for weight, mean, covariance in zip(
            self.weights, self.means, self.covariances, strict=True
        ):
            centre = quadratic(self.unflatten(mean))
            expected = centre
            for step in torch.linalg.cholesky(covariance).mT:
                up, down = self.unflatten(mean + step), self.unflatten(mean - step)
                expected = expected + 0.5 * (quadratic(up) + quadratic(down) - 2.0 * centre)
            total = total + weight * expected
        return torch.as_tensor(total)

    def unflatten(self, z: Tensor) -> dict[str, Tensor]:
        """The latents from the flat vector."""
        return _unflatten(z, self.shapes)

    def _place(self, name: str) -> slice:
        start = 0
        for other, (batch, event) in self.shapes.items():
            size = batch.numel() * event.numel()
            if other == name:
                return slice(start, start + size)
            start += size
        raise KeyError(name)

    def _batch(self, name: str) -> torch.Size:
        return self.shapes[name][0]

    def _event(self, name: str) -> torch.Size:
        return self.shapes[name][1]


def dense(
    model: Model,
    latents: Sequence[str],
    params: Params,
    *args: Any,
    check: bool = True,
    **kwargs: Any,
) -> Dense:
    """The posterior of the Gaussian latents, and the log evidence, by the whole joint at once.

    Gradients flow from the log evidence to the parameters.

    Args:
        model: A Pyro model.
        latents: The names of its Gaussian latents.
        params: The value of every parameter site.
        *args: The data.
        check: Whether to take the Hessian at a second point too, where it must be the same.
        **kwargs: Options of the model.

    Raises:
        NotGaussian: If the log joint is no proper quadratic.
    """
    with torch.no_grad():
        sites = run(model, params, {}, *args, **kwargs).nodes
    shapes = {
        name: (torch.Size(sites[name]["fn"].batch_shape), torch.Size(sites[name]["fn"].event_shape))
        for name in latents
    }
    found, values = [], []
    known, choices = _discrete_values(sites)
    for choice in choices:
        found.append(_complete_square(model, params, shapes, choice, check, *args, **kwargs))
        values.append(choice)
    log_joint, means, covariances = (torch.stack(each) for each in zip(*found, strict=True))
    discrete = {name: torch.stack([value[name] for value in values]) for name in known}
    return Dense(shapes, log_joint, means, covariances, discrete, known)


def log_evidence(
    model: Model, latents: Sequence[str], params: Params, *args: Any, **kwargs: Any
) -> Tensor:
    """``log p(data | params)``, parameters' priors left out; differentiable."""
    return dense(model, latents, params, *args, check=False, **kwargs).log_evidence


def maximum(
    model: Model,
    latents: Sequence[str],
    start: Params,
    *args: Any,
    objective: str = "mle",
    **kwargs: Any,
) -> tuple[dict[str, Tensor], float]:
    """The parameters that maximise the objective, by BFGS in free reals, and what it is there."""
    free, value = free_objective(model, latents, start, *args, objective=objective, **kwargs)

    def value_and_gradient(flat: Any) -> tuple[float, Any]:
        vector = torch.tensor(flat, dtype=torch.float64, requires_grad=True)
        try:
            total = -value(vector)
        except (NotGaussian, ValueError, torch.linalg.LinAlgError):
            return math.inf, np.zeros_like(flat)  # a step too far: the search comes back
        (gradient,) = torch.autograd.grad(total, vector)
        return float(total.detach()), gradient.numpy()

    best = free.flatten(start).detach().numpy()
    for method, options in (("L-BFGS-B", {"ftol": 0.0, "gtol": 1e-7}), ("BFGS", {"gtol": 1e-8})):
        found = scipy.optimize.minimize(
            value_and_gradient, best, jac=True, method=method, options={**options, "maxiter": 3000}
        )
        best = found.x
    params = free.unflatten(torch.from_numpy(np.asarray(best)))
    return {name: each.detach() for name, each in params.items()}, -float(found.fun)


def free_objective(
    model: Model,
    latents: Sequence[str],
    start: Params,
    *args: Any,
    objective: str = "mle",
    **kwargs: Any,
) -> tuple[Free, Callable[[Tensor], Tensor]]:
    """The objective as a function of one vector of free reals, and how to make that vector."""
    free = Free(supports(model, start, *args, **kwargs), start)

    def value(vector: Tensor) -> Tensor:
        params = free.unflatten(vector)
        total = log_evidence(model, latents, params, *args, **kwargs)
        return total + log_prior(model, params, *args, **kwargs) if objective == "map" else total

    return free, value


# -- one quadratic ---------------------------------------------------------------------------------


def _complete_square(
    model: Model,
    params: Params,
    shapes: Mapping[str, tuple[torch.Size, torch.Size]],
    discrete: Params,
    check: bool,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log evidence, mean and covariance for one joint value of the discrete latents."""

    def log_joint(z: Tensor) -> Tensor:
        values = {**_unflatten(z, shapes), **discrete}
        trace = run(model, params, values, *args, **kwargs)
        total = torch.zeros((), dtype=torch.float64)
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            if site["infer"].get("_deterministic") or name in params:
                continue
            total = total + log_prob_of(site, latent=name in discrete)
        return total

    size = sum(batch.numel() * event.numel() for batch, event in shapes.values())
    origin = torch.zeros(size, dtype=torch.float64)
    precision = -_hessian(log_joint, origin)
    if check:
        moved = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        again = -_hessian(log_joint, moved)
        scale = precision.detach().abs().max()
        if not bool(((again - precision).abs() <= 1e-9 * scale).all()):
            raise NotGaussian("the Hessian of the log joint is not the same everywhere")
    factor, failed = torch.linalg.cholesky_ex(precision)
    if int(failed):
        raise NotGaussian("the precision of the latents is not positive definite")
    mode = origin
    for _ in range(2):  # the second step takes what rounding left
        mode = mode.detach()
        gradient = _gradient(log_joint, mode)
        mode = mode + torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
    value = log_joint(mode)
    half_log_det = factor.diagonal().log().sum()
    log_z = value + 0.5 * size * math.log(2.0 * math.pi) - half_log_det
    return log_z, mode, torch.cholesky_inverse(factor)


def _gradient(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    z = point.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(function(z), z, create_graph=True)
    return gradient


def _hessian(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """All rows of the Hessian in one batched backward pass; parameters keep their graph."""
    z = point.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(function(z), z, create_graph=True)
        basis = torch.eye(len(z), dtype=z.dtype)
        (hessian,) = torch.autograd.grad(
            gradient, z, basis, create_graph=True, is_grads_batched=True
        )
    return 0.5 * (hessian + hessian.mT)


def _unflatten(
    z: Tensor, shapes: Mapping[str, tuple[torch.Size, torch.Size]]
) -> dict[str, Tensor]:
    values, start = {}, 0
    for name, (batch, event) in shapes.items():
        size = batch.numel() * event.numel()
        values[name] = z[start : start + size].reshape((*batch, *event))
        start += size
    return values


def _discrete_values(sites: Any) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The support of each discrete latent, and all their joint values."""
    known, entries = {}, []
    for name, site in sites.items():
        if not is_latent(site):
            continue
        support = site["fn"].enumerate_support(expand=False).reshape(-1)
        known[name] = support
        batch = torch.Size(site["fn"].batch_shape)
        each = itertools.product(range(len(support)), repeat=batch.numel())
        entries.append([(name, support[list(index)].reshape(batch)) for index in each])
    return known, [dict(combination) for combination in itertools.product(*entries)]
