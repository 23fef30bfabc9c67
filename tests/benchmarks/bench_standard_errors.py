"""What standard errors cost: seconds of a fit, of its errors, and of a bootstrap of 200.

A line for each model: the number of free parameters, seconds of the fit, of its standard errors
(two E-steps for each free parameter), of the sandwich where rows are independent, and of a
bootstrap of 200 refits from the estimates (the mean of a few, times 200). Run it with
``make bench``.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.tables import law_school_test, old_faithful
from ember.models import gaussian_mixture, hidden_markov_gaussian, item_response

REFITS = 3


def cases() -> Iterator[tuple[str, Callable[..., None], Any, dict[str, Any]]]:
    """Name, model, data and options."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def answers(persons: int, items: int) -> Tensor:
        slopes = 0.5 + torch.rand(items, generator=generator, dtype=torch.float64)
        logits = slopes * normal(persons, 1) + normal(items)
        chance = torch.rand(persons, items, generator=generator, dtype=torch.float64)
        return (chance < logits.sigmoid()).double()

    yield "mixture, 272 x 2", gaussian_mixture, old_faithful(), {"components": 2}
    yield "items, 1,000 x 5", item_response, law_school_test(), {}
    jumps = (torch.rand(2000, generator=generator) < 0.05).cumsum(0) % 2
    yield (
        "chain, 2,000",
        hidden_markov_gaussian,
        (3.0 * jumps + normal(2000))[:, None],
        {"states": 2},
    )
    yield "items, 2,000 x 20", item_response, answers(2000, 20), {}
    centres = 6.0 * normal(5, 5)
    rows = torch.randint(5, (100_000,), generator=generator)
    data = centres[rows] + normal(100_000, 5)
    yield "mixture, 100,000 x 5", gaussian_mixture, data, {"components": 5}
    yield "items, 50,000 x 50", item_response, answers(50_000, 50), {}


def measure(name: str, model: Callable[..., None], data: Any, options: dict[str, Any]) -> None:
    """Print the line of one model."""
    em = EM(model, "mle", seed=0)
    em.fit(data[:200], **options)  # what torch loads at the first use of each operation
    fit, fitting = timed(lambda: em.fit(data, **options))
    _, errors = timed(fit.standard_errors)
    sandwich = float("nan")
    if fit.plan.row is not None:
        _, sandwich = timed(lambda: fit.standard_errors(robust=True))
    again = EM(model, "mle", init=fit.params)
    _, refits = timed(lambda: [again.fit(data, **options) for _ in range(REFITS)])
    print(
        f"{name:22}{fit.n_parameters:>6}{fitting:>8.2f} s{errors:>8.3f} s{sandwich:>8.3f} s"
        f"{200 * refits / REFITS:>10.1f} s",
        flush=True,
    )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and how many seconds it takes."""
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began


def main() -> None:
    """Print a line for each model."""
    warnings.simplefilter("ignore")
    print(f"{torch.get_num_threads()} threads, float64")
    print(
        f"{'model, data':22}{'free':>6}{'fit':>10}{'errors':>10}{'sandwich':>10}{'bootstrap':>12}",
        flush=True,
    )
    for case in cases():
        measure(*case)


if __name__ == "__main__":
    main()
