"""How often intervals of a level cover the truth, over many data sets."""

import time
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference import EM
from tests.coverage.populations import POPULATIONS

__all__ = ["Outcome", "covered", "line", "run"]

LEVEL = 0.95
UNKNOWN = ("initial",)  # one first state says next to nothing of these


@dataclass(frozen=True)
class Outcome:
    """What one data set has shown.

    Attributes:
        covers: For each entry 1 where its interval holds the truth, 0 where not, NaN without one.
        fitting: Seconds of the fit.
        errors: Seconds of the intervals.
    """

    covers: dict[str, Tensor]
    fitting: float
    errors: float


def run(name: str, seed: int) -> Outcome:
    """Draws the data set of a seed, fits it from the truth, and asks for intervals."""
    torch.set_num_threads(1)
    population = POPULATIONS[name]
    data, options = population.draw(torch.Generator().manual_seed(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # estimates at a boundary have no interval, which counts
        began = time.perf_counter()
        fit = EM(population.model, "mle", init=population.truth).fit(data, **options)
        fitted = time.perf_counter()
        intervals = fit.confidence_intervals(LEVEL)
        done = time.perf_counter()
    covers = {}
    for site, truth in population.truth.items():
        lower, upper = intervals[site]
        inside = ((lower <= truth) & (truth <= upper)).double()
        covers[site] = torch.where(lower.isnan(), torch.nan, inside)
    return Outcome(covers, fitted - began, done - fitted)


def covered(outcomes: list[Outcome]) -> dict[str, Tensor]:
    """The share of data sets whose interval covers the truth, of those that have one."""
    sites = [site for site in outcomes[0].covers if site not in UNKNOWN]
    return {site: torch.stack([o.covers[site] for o in outcomes]).nanmean(0) for site in sites}


def line(name: str, outcomes: list[Outcome]) -> str:
    """The least, mean and largest coverage of an entry, and what errors cost beside a bootstrap."""
    shares = torch.cat([share.reshape(-1) for share in covered(outcomes).values()])
    every = torch.cat([each.reshape(-1) for o in outcomes for each in o.covers.values()])
    fitting = sum(o.fitting for o in outcomes) / len(outcomes)
    errors = sum(o.errors for o in outcomes) / len(outcomes)
    return (
        f"{name:18}{len(outcomes):>6}{len(shares):>9}{shares.min():>9.3f}{shares.mean():>8.3f}"
        f"{shares.max():>8.3f}{every.isnan().double().mean():>9.3f}{1e3 * errors:>10.0f} ms"
        f"{200 * fitting:>10.1f} s"
    )
