"""The wish for a stochastic search: how many chains, and for how long."""

from dataclasses import dataclass

from ember.inference.numerics.whole_numbers import is_whole

__all__ = ["MonteCarlo"]


@dataclass(frozen=True)
class MonteCarlo:
    r"""Asks for latents of units to be drawn, and for their parameters to be found by SAEM.

    Chains of Metropolis draws of each unit take turns with M-steps on running averages of the
    statistics (Delyon, Lavielle & Moulines 1999). Then the draws of a longer run give the score
    and the information of Louis (1982), a Newton step, and the Monte Carlo standard error of the
    estimates. The run is doubled until that is at most a tenth of the standard error of every
    parameter. What follows from the estimates, the log likelihood and posteriors, is computed on
    adaptive nodes.

    Args:
        chains: How many chains each unit has.
        burn_in: Steps at which the statistics of the latest draws count alone.
        averaged: Steps whose statistics are averaged.
        draws: Draws of each chain for the first Newton step.
        most: The largest number of them.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If a number is below what makes sense.

    References:
        B. Delyon, M. Lavielle and E. Moulines (1999). Convergence of a stochastic approximation
        version of the EM algorithm. Annals of Statistics 27, 94-128.
        E. Kuhn and M. Lavielle (2005). Maximum likelihood estimation in nonlinear mixed effects
        models. Computational Statistics & Data Analysis 49, 1020-1038.

    Example:
        >>> from ember.inference import EM, MonteCarlo
        >>> from ember.models import growth_curves
        >>> em = EM(growth_curves, integrate={"curves": MonteCarlo(chains=8)}, seed=0)
    """

    chains: int = 4
    burn_in: int = 150
    averaged: int = 150
    draws: int = 200
    most: int = 3200

    def __post_init__(self) -> None:
        least = {"chains": 1, "burn_in": 1, "averaged": 1, "draws": 40, "most": self.draws}
        for name, bound in least.items():
            value = getattr(self, name)
            if not is_whole(value):
                raise TypeError(f"MonteCarlo({name}={value!r}) must be a whole number.")
            if value < bound:
                raise ValueError(f"MonteCarlo({name}={value}) must be at least {bound}.")
