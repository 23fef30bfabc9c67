"""The two-parameter item response model on 61 nodes: its steps, a fit, and the memory it takes.

A line for each number of persons and items: seconds to read the model, milliseconds of the E-step
and of the M-step at the start (the least of a few), then a whole fit with its passes over the data,
the most memory that it took beyond the data, and the nodes that it ended with. Where girth is
installed, its marginal maximum likelihood follows, and how much larger Ember's log likelihood is.
Run it with ``make bench``.
"""

import importlib
import importlib.util
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from ember.inference import EM
from ember.models import item_response

SIZES = [(1_000, 5), (2_000, 20), (50_000, 50), (1_000_000, 5)]
RIVAL_UP_TO = 50_000
ROUNDS = 5


def main() -> None:
    """Print a line for each size, each measured in a process of its own."""
    print(f"{torch.get_num_threads()} threads, float64")
    print(
        f"{'N':>8} {'J':>3} {'read':>8} {'E-step':>10} {'M-step':>10} {'fit':>8} {'passes':>7} "
        f"{'memory':>8} {'nodes':>6} {'girth':>8}  log likelihood above girth's",
        flush=True,
    )
    for persons, items in SIZES:
        subprocess.run([sys.executable, __file__, str(persons), str(items)], check=True)


def measure(persons: int, items: int) -> None:
    """Print the line of one size."""
    warm, _ = simulate(200, 3)
    EM(item_response, "mle", seed=0).fit(warm, model="rasch")  # what Python and torch load lazily
    answers, rival_answers = simulate(persons, items)
    em = EM(item_response, "mle", seed=0)
    before = memory()
    began = time.perf_counter()
    fit = em.fit(answers)
    seconds = time.perf_counter() - began
    extra = memory() - before
    reading = timed(lambda: em.plan(answers), 1)
    plan = em.plan(answers)
    start = em.initialise(plan)
    e_step = timed(lambda: em.e_step(start, plan), ROUNDS)
    expected = em.e_step(start, plan)
    m_step = timed(lambda: em.m_step(expected), ROUNDS)
    nodes = fit.plan.structure.nodes["ability"].rule.nodes
    line = (
        f"{persons:>8} {items:>3} {reading:>6.2f} s {1e3 * e_step:>7.2f} ms "
        f"{1e3 * m_step:>7.2f} ms {seconds:>6.2f} s {fit.evaluations:>7} {extra:>5.0f} MB "
        f"{nodes:>6}"
    )
    if importlib.util.find_spec("girth") is not None and persons <= RIVAL_UP_TO:
        rival, params = girth(rival_answers)
        above = fit.log_likelihood - em.e_step(params, answers).log_likelihood
        line += f" {rival:>6.2f} s  {above:.1e}"
    print(line, flush=True)


def simulate(persons: int, items: int) -> tuple[torch.Tensor, np.ndarray]:
    """Answers (N, J), and the same as girth takes them."""
    generator = np.random.default_rng(0)
    slopes = generator.uniform(0.6, 1.8, items)
    intercepts = np.linspace(-2.0, 2.0, items)
    logits = generator.normal(size=(persons, 1)) * slopes + intercepts
    right = generator.random((persons, items)) < 1.0 / (1.0 + np.exp(-logits))
    return torch.tensor(right, dtype=torch.float64), right.T.astype(int)


def girth(answers: np.ndarray) -> tuple[float, dict[str, torch.Tensor]]:
    """Seconds of girth's fit, and its estimates by the names of the sites."""
    rival = importlib.import_module("girth")
    began = time.perf_counter()
    found = rival.twopl_mml(answers)
    seconds = time.perf_counter() - began
    slopes, difficulties = torch.tensor(found["Discrimination"]), torch.tensor(found["Difficulty"])
    return seconds, {"discriminations": slopes, "intercepts": -slopes * difficulties}


def timed(run: object, rounds: int) -> float:
    """The least time of a few runs, in seconds."""
    assert callable(run)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times) if rounds > 1 else statistics.fmean(times)


def memory() -> float:
    """The most memory that the process has had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
