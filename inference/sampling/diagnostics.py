r"""What chains say of themselves: whether they agree, and how many draws theirs are worth.

The split potential scale reduction :math:`\hat R` compares the spread between halves of chains with
that within; near 1 they agree. The effective sample size is the number of independent draws that
would tell the mean as well.

Reference: Gelman et al. (2013), *Bayesian Data Analysis*, 3rd edition, sections 11.4 and 11.5.
"""

import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

__all__ = ["FEWEST", "effective_size", "r_hat"]


FEWEST = 4  # draws of a chain of which anything is said


def r_hat(draws: Tensor) -> Tensor:
    """Of every entry of draws ``(chains, n, ...)``; NaN where it does not vary."""
    if draws.shape[1] < FEWEST:
        return draws.new_full(draws.shape[2:], torch.nan)
    found: Tensor = split_gelman_rubin(draws, chain_dim=0, sample_dim=1)
    return found


def effective_size(draws: Tensor) -> Tensor:
    """Of every entry of draws ``(chains, n, ...)``; NaN where it does not vary."""
    if draws.shape[1] < FEWEST:
        return draws.new_full(draws.shape[2:], torch.nan)
    found: Tensor = effective_sample_size(draws, chain_dim=0, sample_dim=1)
    return found.clamp_max(float(draws.shape[:2].numel()))
