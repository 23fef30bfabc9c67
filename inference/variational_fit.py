"""The result of variational Bayes: posteriors of the parameters, and the bound that they reach."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ember.inference.answers import fresh_seed
from ember.inference.fit import Fit
from ember.inference.inputs.options import check_count
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.plan import Plan
from ember.inference.variational_bayes.variational_bayes import VariationalBayes

__all__ = ["VariationalFit"]


@dataclass(frozen=True, eq=False)
class VariationalFit(Fit):
    """What ``VBEM`` has fitted.

    ``params`` are the posterior means (of a parameter of which the family takes a power, such as a
    variance: what that power of the mean is), ``log_likelihood`` and ``log_posterior`` are those at
    ``params``, and ``history`` is the lower bound. Posteriors of latents, ``predict`` and
    ``latent_samples`` are those of :math:`q`, in which the parameters are uncertain; all else takes
    the parameters to be ``params``.

    Attributes:
        sizes: How sure each posterior is: the entries beside the means.
    """

    sizes: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def lower_bound(self) -> float:
        """The lower bound of ``log p(data)`` that was reached.

        Parameters without a posterior of their own are taken at their estimates, with their prior
        density: then it bounds ``log p(data, points)``, and compares with bounds of models that
        have the same points alone.
        """
        return float(self.history[-1])

    @property
    def points(self) -> list[str]:
        """The parameters without a posterior, which are estimated by a point."""
        sure = {name.partition("|")[0] for name in self.sizes}
        return [name for name in self.params if name not in sure]

    @property
    def posteriors(self) -> dict[str, Any]:
        """The posterior of every parameter that has one, as a distribution.

        A location whose prior scales with the precision of the data has a Student's t, the
        precision integrated out.
        """
        with sheltered(data=self._data):
            found = VariationalBayes.of(self.plan).posteriors
            return {name: posterior.of_site(self._state) for name, posterior in found.items()}

    def posterior_samples(self, n: int, seed: int | None = None) -> dict[str, Tensor]:
        """Draws ``n`` joint values of the parameters, site name to ``(n, ...)``.

        Parameters without a posterior have the same value in every draw.
        """
        check_count("n", n)
        with sheltered(fresh_seed(seed), self._data), torch.no_grad():
            return VariationalBayes.of(self.plan).draw(self._state, n)

    @property
    def has_posterior(self) -> bool:
        return True

    def _posterior_deviations(self) -> dict[str, Tensor]:
        found = {}
        for name, posterior in self.posteriors.items():
            with contextlib.suppress(NotImplementedError):  # a power of a gamma variable
                found[name] = posterior.variance.sqrt()
        return found

    def summary(
        self, errors: bool = True, level: float = 0.95, robust: bool = False
    ) -> pd.DataFrame:
        """As of any fit, with standard errors and intervals unless ``errors=False``."""
        return super().summary(errors, level, robust)

    def __str__(self) -> str:
        first, rest = super().__str__().split("\n", 1)
        points = self.points
        of = f" of log p(data, {', '.join(points)}): these are points" if points else ""
        return f"{first}\n  lower bound     {self.lower_bound:.6f}{of}\n{rest}"

    __repr__ = __str__

    @property
    def _state(self) -> Mapping[str, Tensor]:
        return {**self.params, **self.sizes}

    def _renumbered(self, latent: str, order: list[int]) -> Fit:
        state = VariationalBayes.of(self.plan).permuted(self._state, latent, order)
        return dataclasses.replace(
            self,
            params={name: state[name] for name in self.params},
            sizes={name: state[name] for name in self.sizes},
        )

    def _for_latents(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[Plan, Mapping[str, Tensor]]:
        bayes = VariationalBayes.of(self.plan)
        return bayes.for_data(self.plan_for(args, kwargs)), self._state
