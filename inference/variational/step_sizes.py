r"""An optimiser for SVI whose steps know the units of every coordinate.

A step of Adam has the same length in every coordinate, about the learning rate, while parameters
come in units of their own: a location in minutes or in years, a log precision without any. Here
each coordinate has a natural length. Logarithms and logits have length 1. A coordinate in the
units of the data has the square root of ``n / d``, where ``n`` is the number of observations and
``d`` the curvature of the log posterior at the start, so that a change of one natural length is
what one observation can tell.

Curvatures are the row norms of the Hessian ``H``, which are found without forming it: for
standard normal ``v``, ``E[(H v)_i^2]`` is the square of the norm of row ``i``.

Reference: Dauphin, de Vries & Bengio (2015), *Equilibrated adaptive learning rates for non-convex
optimization*, NeurIPS 28.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from pyro.infer import autoguide
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.parameters.parameter import Parameter
from ember.inference.parameters.supports import base_support
from ember.inference.plan.plan import Plan
from ember.inference.variational.elbo import GuideFunction

__all__ = ["ScaledAdam", "curvatures", "lengths_by_name"]


ROUNDS = 4  # each round measures in the units that the one before it found
PROBES = 4  # random directions in a round
STEP = 1e-5  # of differences, in the units of the coordinates
MOST_WORK = 5_000_000  # of chains beyond which differences are cheaper than second derivatives
INFORMATIVE = 2500  # more observations than these give no longer steps
REALS = (constraints.real, constraints.real_vector)
MATRICES = (constraints.positive_definite, constraints.lower_cholesky)


class ScaledAdam(torch.optim.Optimizer):
    """Adam with a natural length for every coordinate and an exponentially falling rate.

    Args:
        params: What to optimise.
        lr: Learning rate at the start, in natural lengths.
        lrd: Factor on the learning rate after every step.
        length: Natural length of every coordinate; a tensor of the parameter's shape, or 1.
        betas: Decay of the running means of the gradient and of its square.

    Reference: Kingma & Ba (2015), *Adam: a method for stochastic optimization*, ICLR.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        lrd: float = 1.0,
        length: Tensor | float = 1.0,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(params, {"lr": lr, "lrd": lrd, "length": length, "betas": betas})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Takes one step, then lowers the learning rate."""
        for group in self.param_groups:
            (decay, decay_square), length = group["betas"], group["length"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad * length
                state = self.state[parameter]
                if not state:
                    state.update(count=0, mean=0.0 * gradient, square=0.0 * gradient)
                state["count"] += 1
                state["mean"].lerp_(gradient, 1.0 - decay)
                state["square"].lerp_(gradient.square(), 1.0 - decay_square)
                mean = state["mean"] / (1.0 - decay ** state["count"])
                root = (state["square"] / (1.0 - decay_square ** state["count"])).sqrt()
                parameter.sub_(group["lr"] * length * mean / (root + 1e-12))
            group["lr"] *= group["lrd"]


def curvatures(
    plan: Plan, start: Mapping[str, Tensor], bijective: bool = False
) -> dict[str, Tensor]:
    """How sharply the log posterior bends in each unconstrained coordinate at ``start``.

    Args:
        plan: The plan of the model.
        start: Constrained parameters.
        bijective: Whether coordinates are those of ``biject_to`` (as in ``AutoNormal``), not of
            ``transform_to`` (as in ``AutoDelta`` and ``pyro.param``).

    Returns:
        Site name to a positive tensor of the unconstrained shape; infinite where not known.
    """
    transforms = {
        name: (biject_to if bijective and p.has_prior else transform_to)(p.support)
        for name, p in plan.structure.parameters.items()
    }
    free = {name: transforms[name].inv(start[name]).detach() for name in transforms}
    unknown = {name: torch.full_like(value, torch.inf) for name, value in free.items()}
    if not all(bool(torch.isfinite(value).all()) for value in free.values()):
        return unknown  # a start on the boundary of its support
    leaves = [value.clone().requires_grad_() for value in free.values()]
    try:
        with torch.enable_grad():
            twice = _chain_work(plan) <= MOST_WORK

            def gradient(at: list[Tensor]) -> tuple[Tensor, ...]:
                params = {n: transforms[n](x) for n, x in zip(free, at, strict=True)}
                objective = LogEvidence.of(plan)(params) + plan.prior.log_prob(params)
                return torch.autograd.grad(objective, at, create_graph=twice)

            product = (
                _hessian_product(leaves, gradient) if twice else _differences(leaves, gradient)
            )
            norms = _row_norms(product, leaves)
    except RuntimeError:
        return unknown  # a density that can be differentiated only once
    return {
        name: torch.where(torch.isfinite(d) & (d > 0), d, torch.inf)
        for name, d in zip(free, norms, strict=True)
    }


def _natural_lengths(plan: Plan, curvature: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The natural length of every unconstrained coordinate; see the module."""
    every = max(_observations(plan), 1.0)
    lengths = {}
    for name, d in curvature.items():
        count = min(every / _rows_of_its_own(plan, name), INFORMATIVE)
        data = torch.where(torch.isfinite(d), (count / d).sqrt(), torch.ones(()))
        has_units = _has_units(plan.structure.parameters[name], d.shape)
        lengths[name] = torch.where(has_units, data, torch.ones(()))
    return lengths


def _rows_of_its_own(plan: Plan, name: str) -> int:
    """Among how many entries of a parameter the rows are shared out: those of a latent by row."""
    if plan.row is None or plan.plate_names[plan.row] not in plan.structure.parameters[name].plates:
        return 1
    return plan.sizes[plan.row]


def lengths_by_name(
    plan: Plan,
    guide: GuideFunction,
    start: Mapping[str, Tensor],
    spread: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Natural lengths by the name of what is optimised: a guide's locations, and model params.

    As a side effect the scales of a normal guide start at what the curvature says of them.

    Args:
        plan: The plan.
        guide: The guide.
        start: Constrained parameters.
        spread: Standard deviations of the Gaussian latents that the guide may cover.
    """
    parts = list(guide) if isinstance(guide, autoguide.AutoGuideList) else [guide]
    lengths: dict[str, Tensor] = {}
    for part in parts:
        lengths |= _lengths_of(plan, part, start, spread or {})
    return lengths


def _lengths_of(
    plan: Plan,
    guide: GuideFunction,
    start: Mapping[str, Tensor],
    spread: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Those of one guide; natural lengths of latents are their posterior deviations."""
    is_delta = isinstance(guide, autoguide.AutoDelta)
    curvature = curvatures(plan, start, bijective=not is_delta)
    length = _natural_lengths(plan, curvature)
    curvature |= {name: deviation**-2.0 for name, deviation in spread.items()}
    length |= spread
    parameters = plan.structure.parameters
    lengths = {name: length[name] for name, p in parameters.items() if not p.has_prior}
    within = {name for name, p in parameters.items() if p.has_prior} | spread.keys()
    guided = [name for name in plan.structure.plates if name in within & _guided_by(guide)]
    prefix = getattr(guide, "_pyro_name", "")
    if is_delta:
        lengths |= {f"{prefix}.{name}": length[name] for name in guided}
    elif isinstance(guide, autoguide.AutoNormal):
        for name in guided:
            scale = _scale(getattr(guide.scales, name), curvature[name], length[name])
            setattr(guide.scales, name, scale)
            lengths[f"{prefix}.locs.{name}"] = length[name]
            lengths[f"{prefix}.scales.{name}"] = scale.clamp_min(1.0)
    elif isinstance(guide, autoguide.AutoContinuous) and hasattr(guide, "loc"):
        flat = torch.cat([length[name].reshape(-1) for name in guided])
        lengths[f"{prefix}.loc"] = flat
        if isinstance(getattr(guide, "scale", None), Tensor):
            bends = torch.cat([curvature[name].reshape(-1) for name in guided])
            guide.scale = _scale(guide.scale, bends, flat)
            lengths[f"{prefix}.scale"] = guide.scale.detach().clamp_min(1.0)
    return lengths


def _guided_by(guide: GuideFunction) -> set[str]:
    """The sites that an autoguide covers, as it has seen in its model."""
    prototype = getattr(guide, "prototype_trace", None)
    return set() if prototype is None else {name for name, _ in prototype.iter_stochastic_nodes()}


def _scale(default: Tensor, curvature: Tensor, length: Tensor) -> Tensor:
    """Where the scale of a normal guide starts: what the curvature says, or the default.

    Its unconstrained coordinate is like the logarithm for small scales and like the scale itself
    for large ones, which is why its natural length is the scale where that is above 1.
    """
    known = torch.minimum(curvature**-0.5, length)
    return torch.where(torch.isfinite(curvature), known, default).detach()


Gradient = Callable[[list[Tensor]], tuple[Tensor, ...]]
Product = Callable[[list[Tensor]], list[Tensor]]


def _chain_work(plan: Plan) -> int:
    """The least cost of a second derivative through chains: steps by the cube of their states."""
    return sum(c.steps * plan.sizes[c.state] ** 3 for c in plan.chains.values())


def _differences(leaves: list[Tensor], gradient: Gradient) -> Product:
    """Products with the Hessian by central differences of the gradient."""

    def product(vectors: list[Tensor]) -> list[Tensor]:
        sides = []
        for step in (STEP, -STEP):
            at = [(x + step * v).detach() for x, v in zip(leaves, vectors, strict=True)]
            sides.append(gradient([each.requires_grad_() for each in at]))
        return [(up - down) / (2.0 * STEP) for up, down in zip(*sides, strict=True)]

    return product


def _hessian_product(leaves: list[Tensor], gradient: Gradient) -> Product:
    gradients = gradient(leaves)

    def product(vectors: list[Tensor]) -> list[Tensor]:
        along = torch.stack([(g * v).sum() for g, v in zip(gradients, vectors, strict=True)]).sum()
        products = torch.autograd.grad(along, leaves, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(leaf) if g is None else g
            for leaf, g in zip(leaves, products, strict=True)
        ]

    return product


def _row_norms(product: Product, leaves: list[Tensor]) -> list[Tensor]:
    """Norms of the Hessian's rows, each in the units in which all of them are about 1.

    A single round would let the coordinates of largest curvature drown the others; a round in
    units that are right up to a factor leaves at most the square root of that factor.
    """
    units = [torch.ones_like(leaf) for leaf in leaves]
    for _ in range(ROUNDS):
        squares = [torch.zeros_like(leaf) for leaf in leaves]
        for _ in range(PROBES):
            rows = product([u * torch.randn_like(u) for u in units])
            squares = [s + (u * r).square() for s, u, r in zip(squares, units, rows, strict=True)]
        norms = [(s / PROBES).sqrt() for s in squares]
        units = [
            torch.where(torch.isfinite(n) & (n > 0), u / n.sqrt(), u)
            for u, n in zip(units, norms, strict=True)
        ]
    return [torch.where(n > 0, u**-2.0, torch.zeros(())) for u, n in zip(units, norms, strict=True)]


def _observations(plan: Plan) -> float:
    """How many observations the data hold, weights counted."""
    total = 0.0
    for name in plan.structure.observed:
        scale = plan.scales[name]
        weight = 1.0 if scale is None else float(scale.tensor.mean())
        total += weight * math.prod(plan.sizes[plate] for plate in plan.sites[name].plates)
    return total


def _has_units(parameter: Parameter, shape: torch.Size) -> Tensor:
    """Which unconstrained coordinates are in the units of the data: True for each that is."""
    support = base_support(parameter.support)
    if any(support is real for real in REALS):
        return torch.ones(shape, dtype=torch.bool)
    if not any(support is matrix for matrix in MATRICES):
        return torch.zeros(shape, dtype=torch.bool)
    # A Cholesky factor: its diagonal passes through the logarithm, the rest does not.
    dim = parameter.shape[-1]
    off_diagonal = ~torch.eye(dim, dtype=torch.bool)
    if shape[-2:] != (dim, dim):
        rows, columns = torch.tril_indices(dim, dim)
        off_diagonal = off_diagonal[rows, columns]
    return off_diagonal.expand(shape)
