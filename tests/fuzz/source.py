"""The text of a random model while it grows: its parameters, its statements, its inputs."""

import math
import random
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Source", "literal"]

T = TypeVar("T")

# Where a parameter of each kind may live, as the text of a constraint and of priors; {c} is a
# typical value, {s} a typical size in the unit of the data.
CONSTRAINTS = {
    "real": ("constraints.real",),
    "positive": ("constraints.positive", "constraints.interval({low}, {high})"),
    "bounded": ("constraints.interval({low}, {high})",),
    "unit": ("constraints.unit_interval", "constraints.interval(0.02, 0.98)"),
    "simplex": ("constraints.simplex",),
    "ordered": ("constraints.ordered_vector",),
    "tril": ("constraints.lower_cholesky",),
    "covariance": ("constraints.positive_definite",),
    "precision": ("constraints.positive_definite",),
}
PRIORS = {
    "real": (
        "dist.Normal({c}, {wide})",
        "dist.Normal({c}, {wide})",
        "dist.Laplace({c}, {wide})",
        "dist.StudentT(4.0, {c}, {wide})",
        "dist.Cauchy({c}, {wide})",
        "dist.Uniform({low}, {high})",
    ),
    "positive": (
        "dist.Gamma(3.0, 2.0 / {s})",
        "dist.Gamma(3.0, 2.0 / {s})",
        "dist.InverseGamma(3.0, 2.0 * {s})",
        "dist.LogNormal(math.log({s}), 1.0)",
        "dist.HalfNormal(2.0 * {s})",
        "dist.HalfCauchy({s})",
        "dist.Exponential(1.0 / {s})",
        "dist.Uniform({low}, {high})",
    ),
    "bounded": ("dist.Uniform({low}, {high})",),
    "unit": ("dist.Beta(2.0, 2.0)", "dist.Beta(1.5, 3.0)", "dist.Uniform(0.0, 1.0)"),
}


def literal(value: Tensor | float) -> str:
    """A tensor as Python text."""
    if isinstance(value, float):
        return repr(value)
    return f"torch.tensor({value.tolist()})"


class Source:
    """Statements of a model, the values from which its data are drawn, and its known inputs."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.declarations: list[str] = []
        self.statements: list[str] = []
        self.truth: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.observed: dict[str, tuple[int, ...]] = {}  # shapes of the data
        self.flexible: set[str] = set()  # data whose entries may be missing one by one
        self.features: set[str] = set()
        self.known: dict[tuple[object, ...], str] = {}  # parameters that may be used once more
        self.unit = self.pick(1.0, 1.0, 1.0, 1e-8, 1e-4, 1e3, 1e6, 1e12)
        self.shift = self.pick(0.0, 0.0, 0.0, 10.0, 1e3, 1e5)
        self.style = self.pick("sample", "sample", "param", "mixed")

    # -- choices ------------------------------------------------------------------------------

    def pick(self, *options: T) -> T:
        return self.rng.choice(options)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def number(self, low: float, high: float) -> float:
        return round(self.rng.uniform(low, high), 3)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    # -- statements ---------------------------------------------------------------------------

    def line(self, depth: int, text: str) -> None:
        """A statement after all parameters."""
        self.statements.append("    " * depth + text)

    def text(self) -> str:
        """The whole model."""
        arguments = ", ".join([*self.observed, *self.inputs])
        return "\n".join([f"def model({arguments}):", *self.declarations, *self.statements, ""])

    def given(self, name: str, value: Tensor) -> str:
        """A known input of the model, passed as an argument."""
        self.inputs[name] = value
        return name

    def declare(self, text: str) -> None:
        self.declarations.append("    " + text)

    def parameter(
        self,
        name: str,
        kind: str,
        batch: tuple[int, ...] = (),
        event: tuple[int, ...] = (),
        centre: float = 0.0,
        size: float = 1.0,
    ) -> str:
        """Declares a parameter of the shape ``batch + event`` and returns its name.

        ``centre`` and ``size`` are a typical value of a real parameter, and the size of what
        varies, in the unit of the data.
        """
        alike = (kind, batch, event, centre, size)
        if kind in ("real", "positive") and alike in self.known and self.chance(0.2):
            self.features.add("shared")
            return self.known[alike]
        self.known[alike] = name
        truth = _truth(self, kind, batch, event, centre, size)
        self.truth[name] = truth
        as_param = self.style == "param" or (self.style == "mixed" and self.chance(0.5))
        if kind in ("tril", "covariance") or as_param:
            self._declare_param(name, kind, truth, centre, size)
        else:
            self._declare_sample(name, kind, batch, event, centre, size)
        return name

    def _declare_param(
        self, name: str, kind: str, truth: Tensor, centre: float, size: float
    ) -> None:
        constraint = self.pick(*CONSTRAINTS[kind])
        if "interval(" in constraint:
            self.features.add("interval")
        constraint = constraint.format(low=repr(0.02 * size), high=repr(50.0 * size))
        start = _start(self, kind, truth, size)
        self.declare(f"{name} = pyro.param({name!r}, {literal(start)}, constraint={constraint})")

    def _declare_sample(
        self,
        name: str,
        kind: str,
        batch: tuple[int, ...],
        event: tuple[int, ...],
        centre: float,
        size: float,
    ) -> None:
        prior, own = self._prior(kind, event, centre, size)
        inner = event[: len(event) - own]
        if len(batch) == 1 and self.chance(0.5):
            if inner:
                prior += f".expand({list(inner)}).to_event({len(inner)})"
            self.declare(f"with pyro.plate('{name}_plate', {batch[0]}):")
            self.declare(f"    {name} = pyro.sample({name!r}, {prior})")
            return
        outer = (*batch, *inner)
        if outer:
            prior += f".expand({list(outer)}).to_event({len(outer)})"
        self.declare(f"{name} = pyro.sample({name!r}, {prior})")

    def _prior(
        self, kind: str, event: tuple[int, ...], centre: float, size: float
    ) -> tuple[str, int]:
        """The text of a prior, and how many event dims it has of itself."""
        if kind == "simplex":
            concentration = self.pick(1.0, 1.5, 2.0, self.number(1.0, 4.0))
            if self.chance(0.04):
                concentration = 0.6
                self.features.add("concentration below 1")
            return f"dist.Dirichlet(torch.full(({event[-1]},), {concentration}))", 1
        if kind == "ordered":
            base = f"dist.Normal({centre!r}, {3.0 * size!r}).expand([{event[-1]}]).to_event(1)"
            return f"dist.TransformedDistribution({base}, dist.transforms.OrderedTransform())", 1
        if kind == "precision":
            rate = f"torch.eye({event[-1]}) * {size!r}"
            return f"dist.Wishart(torch.tensor({event[-1] + 2.0}), {rate})", 2
        text = self.pick(*PRIORS[kind])
        if self.unit != 1.0 and "Uniform" not in text and self.chance(0.06):
            centre, size = 0.0, 1.0
            self.features.add("prior in another unit")
        low, high = centre - 12.0 * size, centre + 12.0 * size
        if kind in ("positive", "bounded"):
            low, high = 0.02 * size, 50.0 * size
        numbers = {"c": centre, "s": size, "wide": 4.0 * size, "low": low, "high": high}
        return text.format(**{key: repr(value) for key, value in numbers.items()}), 0


def _truth(
    source: Source,
    kind: str,
    batch: tuple[int, ...],
    event: tuple[int, ...],
    centre: float,
    size: float,
) -> Tensor:
    """A plausible value: locations some sizes apart, scales near the size."""
    shape = (*batch, *event)
    matrix: Callable[[Tensor], Tensor] = lambda tril: tril @ tril.mT  # noqa: E731
    if kind == "real":
        return centre + 2.0 * size * source.normal(*shape)
    if kind in ("positive", "bounded"):
        return size * (0.6 * source.normal(*shape)).exp()
    if kind == "unit":
        return 0.1 + 0.8 * source.uniform(*shape)
    if kind == "simplex":
        return source.normal(*shape).softmax(-1)
    if kind == "ordered":
        return (centre + 2.0 * size * source.normal(*shape)).sort(-1).values
    tril = torch.tril(0.3 * source.normal(*shape), -1) + torch.diag_embed(
        (0.3 * source.normal(*shape[:-1])).exp()
    )
    return math.sqrt(size) * tril if kind == "tril" else size * matrix(tril)


def _start(source: Source, kind: str, truth: Tensor, size: float) -> Tensor:
    """Where a ``pyro.param`` starts: the truth, moved."""
    if kind == "real":
        return truth + size * source.normal(*truth.shape)
    if kind == "ordered":
        return (truth + size * source.normal(*truth.shape)).sort(-1).values
    if kind in ("positive", "bounded"):
        return (truth * (0.4 * source.normal(*truth.shape)).exp()).clamp(0.1 * size, 10.0 * size)
    if kind == "simplex":
        return torch.full_like(truth, 1.0) / truth.shape[-1] if source.chance(0.3) else truth
    if kind in ("covariance", "precision"):
        return size * torch.eye(truth.shape[-1], dtype=truth.dtype).expand(truth.shape)
    return truth
