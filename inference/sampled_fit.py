"""A fit that is made of draws from the posterior of the parameters."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from ember.inference.answers import fresh_seed
from ember.inference.fit import Fit
from ember.inference.inputs.options import check_count
from ember.inference.numerics.draws import Draws
from ember.inference.queries.relabelling import permute
from ember.inference.reports.summary import entry_values
from ember.inference.sampling.diagnostics import FEWEST, effective_size, r_hat

__all__ = ["SampledFit"]


@dataclass(frozen=True, eq=False)
class SampledFit(Fit):
    """What ``NUTS`` or ``Laplace`` has drawn, latents integrated out.

    ``params`` are the means of the draws (of a site whose support is not convex, such as a Cholesky
    factor of correlations, those of its unconstrained coordinates), ``log_likelihood`` and
    ``log_posterior`` are those at ``params``, ``history`` is the way to the mode. Posteriors of
    latents, ``predict`` and the like take the parameters to be ``params``.

    Attributes:
        draws: Site name to ``(chains, n, *shape)``, states of latents numbered as at the mode.
        heights: The log density of each draw in unconstrained coordinates, ``(chains, n)``; of
            ``Laplace`` that of the approximation.
        divergences: How many trajectories of NUTS went astray after the warm-up: some is a sign
            that a part of the posterior is not reached.
        log_evidence: ``log p(data)`` by Laplace's approximation; NaN for NUTS.
    """

    draws: dict[str, Tensor] = field(default_factory=dict, repr=False)
    heights: Tensor = field(default_factory=lambda: torch.zeros(0, 0), repr=False)
    divergences: int = 0
    log_evidence: float = math.nan

    def posterior_samples(self, n: int | None = None, seed: int | None = None) -> dict[str, Tensor]:
        """All draws, ``(chains * n, *shape)``; or ``n`` of them, picked at random.

        Args:
            n: How many; with more than there are, some come again.
            seed: Makes the choice repeatable.
        """
        every = {name: value.flatten(0, 1) for name, value in self.draws.items()}
        if n is None:
            return every
        check_count("n", n)
        draws = Draws(fresh_seed(seed), self.heights.device)
        total = self.heights.numel()
        if n == total:
            return every
        picked = draws.permutation(total)[:n]
        if n > total:
            picked = draws.below(total, (n,))
        return {name: value[picked] for name, value in every.items()}

    def _draws_by_chain(self, n: int, seed: int) -> dict[str, Tensor]:
        length = self.heights.shape[1]
        kept = torch.linspace(0, length - 1, min(n, length)).round().long()
        return {name: value[:, kept] for name, value in self.draws.items()}

    def _renumbered(self, latent: str, order: list[int]) -> Fit:
        draws = permute(self.plan, self.draws, latent, order, lead=2)
        params = permute(self.plan, self.params, latent, order)
        return dataclasses.replace(self, params=params, draws=draws)

    @property
    def has_posterior(self) -> bool:
        return True

    def posterior_draws(self) -> dict[str, Tensor]:
        return self.posterior_samples()

    def summary(
        self, errors: bool = True, level: float = 0.95, robust: bool = False
    ) -> pd.DataFrame:
        """As of any fit; of chains with ``r_hat`` and the effective size ``ess`` beside errors."""
        frame = super().summary(errors, level, robust)
        if not errors or len(self.heights) < 2:
            return frame
        columns = {
            "r_hat": {name: r_hat(value) for name, value in self.draws.items()},
            "ess": {name: effective_size(value) for name, value in self.draws.items()},
        }
        for column, values in columns.items():
            known = entry_values(values)
            frame[column] = [known.get(str(label), math.nan) for label in frame.index]
        return frame

    def __str__(self) -> str:
        first, rest = super().__str__().split("\n", 1)
        chains, n = self.heights.shape
        lines = [f"  draws           {chains} x {n}"]
        if chains > 1:
            lines[0] += f" ({self.divergences} divergent); {self._agreement}"
        if math.isfinite(self.log_evidence):
            lines.append(f"  log evidence    {self.log_evidence:.6f} (Laplace)")
        # The draws began at the mode: what is said of a maximum is said of that.
        rest = rest.replace("\n  maximum         ", "\n  mode            ", 1)
        return "\n".join([first, *lines, rest])

    __repr__ = __str__

    @property
    def _agreement(self) -> str:
        """The worst of all entries, in words."""
        if self.heights.shape[1] < FEWEST:
            return "too few draws to compare chains"
        worst = max(
            float(r_hat(value).nan_to_num(posinf=math.inf).max()) for value in self.draws.values()
        )
        least = min(
            float(effective_size(v).nan_to_num(torch.inf).min()) for v in self.draws.values()
        )
        return f"r-hat at most {worst:.3f}, effective size at least {least:.0f}"
