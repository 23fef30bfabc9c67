"""The campaign: many random models, a table of what became of them, and every disagreement.

``python -m tests.fuzz --seed 0 --models 1000`` runs the models of the seeds 0 to 999;
``python -m tests.fuzz --seed 17 --show`` prints one model as a program of its own and its verdict.
The exit code is 1 if anything disagreed.
"""

import argparse
import collections
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from tests.fuzz.cases import make_case
from tests.fuzz.checks import Outcome, run

LONG = 40  # seconds after which a model is given up


class _TooLong(BaseException):
    """Not caught by anything but this file."""


def _alarm(*_: Any) -> None:
    raise _TooLong


def timed(seed: int) -> Outcome:
    """The outcome of a seed, or that it took too long."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(LONG)
    start = time.perf_counter()
    try:
        return run(seed)
    except _TooLong:
        case = make_case(seed)
        seconds = time.perf_counter() - start
        reason = f"took more than {LONG} seconds"
        return Outcome(seed, case.structure, sorted(case.features), "too slow", reason, [], seconds)
    finally:
        signal.alarm(0)


def _outcomes(seeds: range, jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(timed, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(timed, seeds)


def main() -> int:
    """Runs the campaign from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--models", type=int, default=1, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--show", action="store_true", help="print each model with its data")
    options = parser.parse_args()
    outcomes = []
    for outcome in _outcomes(range(options.seed, options.seed + options.models), options.jobs):
        outcomes.append(outcome)
        if options.show:
            print(make_case(outcome.seed).script())
        for fault in outcome.faults:
            print(
                f"seed {outcome.seed} ({outcome.structure}; {', '.join(outcome.features)}): {fault}"
            )
        if options.show or outcome.fate == "too slow":
            print(
                f"seed {outcome.seed}: {outcome.fate}: {outcome.reason} ({outcome.seconds:.1f} s)"
            )
        sys.stdout.flush()
    print(table(outcomes))
    return int(any(outcome.faults for outcome in outcomes))


def table(outcomes: list[Outcome]) -> str:
    """Models by structure and fate, refusals by sentence, disagreements by seed."""
    fates = ("fitted", "not converged", "refused", "raised", "too slow")
    lines = [f"{'structure':20}{'models':>8}" + "".join(f"{f:>15}" for f in (*fates, "disagree"))]
    for name in [*sorted({o.structure for o in outcomes}), "all"]:
        own = [o for o in outcomes if name in (o.structure, "all")]
        counts = [sum(o.fate == fate for o in own) for fate in fates]
        counts.append(sum(bool(o.faults) for o in own))
        lines.append(f"{name:20}{len(own):>8}" + "".join(f"{count:>15}" for count in counts))
    refusals = collections.Counter(o.reason for o in outcomes if o.fate == "refused")
    lines += [f"refused {count:>4}: {reason}" for reason, count in refusals.most_common()]
    wrong = [str(o.seed) for o in outcomes if o.faults]
    lines.append(f"disagreements: {len(wrong)}" + (f" (seeds {', '.join(wrong)})" if wrong else ""))
    slowest = sorted(outcomes, key=lambda o: -o.seconds)[:5]
    lines.append("slowest: " + ", ".join(f"{o.seed} ({o.seconds:.1f} s)" for o in slowest))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
