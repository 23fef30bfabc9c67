"""Grouping factors of mixed models: which level each row belongs to, and the levels' effects."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ember.models.parts.checks import check_codes, check_finite, check_tensor
from ember.models.parts.design import called
from ember.models.parts.emissions import Wishart, select
from ember.models.parts.gaussian_latents import Line, gaussian_latent, variance_site
from ember.models.parts.orthonormal_design import orthonormal
from ember.models.parts.priors import Hyperparameters

__all__ = ["Grouping", "Groups", "grouping_factors"]

Groups = Tensor | Mapping[str, Tensor]
ALONE = "group"  # the name of a grouping factor that has none


@dataclass(frozen=True)
class Grouping:
    """One grouping factor.

    Attributes:
        name: what its sites begin with.
        codes: the level of each row (N,).
        levels: how many there are, G.
        design: what multiplies the effects in each row (N, K); None for a random intercept.
    """

    name: str
    codes: Tensor
    levels: int
    design: Tensor | None

    @property
    def hyperparameters(self) -> tuple[str, str]:
        """The keys of its hyperparameters."""
        return f"{self.name}_df", f"{self.name}_scale"

    def effects(
        self, line: Line, correlated: bool, hyper: Hyperparameters, how: str = "gaussian"
    ) -> Tensor:
        """Declare the effects of all levels, and return what they add to each row (N,)."""
        if self.design is None:
            variance = variance_site(
                f"{self.name}_variance", hyper, self.hyperparameters, line.left
            )
            prior = dist.Normal(torch.zeros_like(variance), variance.sqrt())
            return select(self._levels(prior, how), self.codes, 0)
        if correlated:
            precision = self._precision(self.design, line, hyper)
            prior = dist.MultivariateNormal(
                precision.new_zeros(self.design.shape[1]), precision_matrix=precision
            )
        else:
            scale = line.left / _spread(line.kept(self.design), line.frequency)
            variances = variance_site(f"{self.name}_variances", hyper, self.hyperparameters, scale)
            prior = dist.Normal(torch.zeros_like(variances), variances.sqrt()).to_event(1)
        return (self.design * select(self._levels(prior, how), self.codes, 1)).sum(-1)

    def _levels(self, prior: TorchDistribution, how: str) -> Tensor:
        with pyro.plate(f"{self.name}_levels", self.levels):
            return gaussian_latent(f"{self.name}_effects", prior, how)

    def _precision(self, design: Tensor, line: Line, hyper: Hyperparameters) -> Tensor:
        """A Wishart whose scale follows the columns of the design under any change of them."""
        width = design.shape[1]
        df_key, scale_key = self.hyperparameters

        def usual() -> Tensor:
            factor = orthonormal(line.kept(design), line.frequency).factor().to(design)
            return line.left * factor @ factor.mT

        df = hyper.above(df_key, (), width + 2.0, bound=width - 1)
        scale = hyper.positive_definite(scale_key, (width, width), usual)
        precision: Tensor = pyro.sample(
            f"{self.name}_precision", Wishart(df, precision_matrix=scale)
        )
        return precision


def grouping_factors(groups: object, design: object, y: Tensor) -> list[Grouping]:
    """The grouping factors, each with its design, checked against the responses."""
    if isinstance(groups, Tensor):
        if isinstance(design, Mapping):
            raise ValueError(
                "`design` names grouping factors, but `groups` is a single one without a name: "
                "pass the design itself."
            )
        return [_grouping(ALONE, "groups", groups, design, "design", y)]
    if not isinstance(groups, Mapping) or not groups:
        raise TypeError(
            "`groups` must be a tensor of level codes (N,), or a mapping from names to such "
            f"tensors, not {type(groups).__name__}."
        )
    if design is None:
        design = {}
    if not isinstance(design, Mapping):
        raise TypeError(
            "`design` must be a mapping from the names in `groups` to tensors (N, K), "
            f"not {type(design).__name__}: say which grouping factor it belongs to."
        )
    for name in design:
        if name not in groups:
            known = ", ".join(repr(one) for one in groups)
            raise ValueError(f"`design` names {name!r}, which `groups` has not: it has {known}.")
    found = []
    for name, codes in groups.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"`groups` has the name {name!r}: names must be made of letters, digits and "
                "underscores, as sites are called by them."
            )
        where, other = f"groups[{name!r}]", f"design[{name!r}]"
        found.append(_grouping(name, where, codes, design.get(name), other, y))
    return found


def _grouping(
    name: str, argument: str, codes: object, design: object, other: str, y: Tensor
) -> Grouping:
    with called(argument):
        codes = check_tensor(codes, {1: "(N,)"})
        check_codes(codes)
    _check_rows(codes, argument, "one level code", y)
    if design is not None:
        with called(other):
            design = check_tensor(design, {1: "(N,)", 2: "(N, K)"})
            check_finite(design)
        _check_rows(design, other, "one row", y)
        design = design.reshape(len(design), -1).to(y)
    codes = codes.long()
    return Grouping(name, codes, int(codes.max()) + 1, design)


def _check_rows(given: Tensor, argument: str, what: str, y: Tensor) -> None:
    if len(given) != len(y):
        raise ValueError(
            f"`{argument}` has {len(given)} row(s) but `y` has {len(y)}: pass {what} for each "
            "response."
        )


def _spread(design: Tensor, frequency: Tensor) -> Tensor:
    """The variance (K,) of each column, the square of one that is constant."""
    weights = frequency / frequency.sum()
    mean = weights @ design
    variance = weights @ (design - mean).square()
    constant = (design == design[:1]).all(0)
    spread = torch.where(constant, mean.square(), variance)
    return torch.where(spread > 0, spread, 1.0)
