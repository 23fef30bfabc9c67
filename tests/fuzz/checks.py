"""What is asked of one fit: every number against the oracle, and the claim that it converged."""

import math
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ember.inference import EM, Fit
from tests.fuzz.cases import Case, float64, make_case
from tests.fuzz.maximum import gain
from tests.fuzz.oracle import Oracle

__all__ = ["Outcome", "run"]

EXACT = 1e-9  # relative: two ways to add up the same numbers
LEFT = 1e-6  # relative: what an optimum may leave to gain


@dataclass
class Outcome:
    """What became of one model."""

    seed: int
    structure: str
    features: list[str]
    fate: str = ""  # "fitted", "not converged", "refused"
    reason: str = ""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run(seed: int, structure: str | None = None) -> Outcome:
    """Makes the model of a seed, fits it, and checks the fit."""
    case = make_case(seed, structure)
    outcome = Outcome(seed, case.structure, sorted(case.features))
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = _guarded(outcome, "fit", lambda: _fit(case))
    outcome.faults += [
        f"stray warning: {w.message}"
        for w in caught
        if w.category is not RuntimeWarning and "ember" in w.filename
    ]
    if fit is not None:
        outcome.fate = "fitted" if fit.converged else "not converged"
        outcome.reason = fit.stop_reason
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome.faults += list(_faults(case, fit))
    outcome.seconds = time.perf_counter() - start
    return outcome


def _fit(case: Case) -> Fit:
    return EM(case.model, case.objective, seed=0, max_iter=200).fit(**case.data)


def _guarded(outcome: Outcome, what: str, call: Any) -> Any:
    """The result of a call; a refusal in one sentence is noted, anything else is a fault."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        message = str(error)
        outcome.fate, outcome.reason = "refused", message
        if not _is_sentence(message):
            outcome.faults.append(
                f"{what}: not a sentence: {type(error).__name__}: {message[:300]}"
            )
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome.fate = "raised"
        place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
        outcome.faults.append(f"{what}: raw {type(error).__name__}: {str(error)[:200]} ({place})")
    return None


def _is_sentence(message: str) -> bool:
    """Whether it names something and says what to do, without a dump of numbers."""
    return (
        "\n" not in message
        and "tensor(" not in message
        and 20 < len(message) < 500
        and message.rstrip()[-1] in ".)"
    )


def _faults(case: Case, fit: Fit) -> Iterator[str]:
    history = fit.history
    falls = history[:-1] - history[1:]
    if len(falls) and float((falls / (1.0 + history[1:].abs())).max()) > EXACT:
        yield f"the history falls by {float(falls.max()):.3g}"
    if "please report" in fit.stop_reason:
        yield f"stop reason: {fit.stop_reason}"
    if not all(bool(torch.isfinite(value).all()) for value in fit.params.values()):
        if "infinity" not in fit.stop_reason:
            yield f"the estimates are not finite: {fit.stop_reason}"
        return
    with float64():
        oracle = Oracle(case)
        yield from _values(case, fit, oracle)
        yield from _posteriors(case, fit, oracle)
        if fit.converged:
            yield from _optimum(case, fit, oracle)
    yield from _elsewhere(case, oracle)
    yield from _answers(case, fit)


def _close(value: float, right: float, slack: float) -> bool:
    both_infinite = value == right
    return both_infinite or abs(value - right) <= EXACT * (1.0 + abs(right)) + slack


def _values(case: Case, fit: Fit, oracle: Oracle) -> Iterator[str]:
    """Log likelihood and log posterior at the estimates."""
    with torch.no_grad():
        right = float(oracle.log_evidence(fit.params))
        slack = _rounding(oracle, fit.params, right)
        if not _close(fit.log_likelihood, right, slack):
            yield f"log likelihood {fit.log_likelihood!r}, right {right!r}"
        right = float(oracle.log_evidence(fit.params, prior=case.objective == "map"))
        if not _close(fit.log_posterior, right, slack):
            yield f"log posterior {fit.log_posterior!r}, right {right!r}"
    if not _close(float(fit.history[-1]), fit.log_posterior, slack):
        yield f"the history ends at {float(fit.history[-1])!r}, the fit at {fit.log_posterior!r}"


def _rounding(oracle: Oracle, params: dict[str, Tensor], value: float) -> float:
    """How much the value may change when the parameters are rounded."""
    spread = 0.0
    for sign in (-1.0, 1.0):
        moved = {name: p * (1.0 + sign * 4e-16) for name, p in params.items()}
        spread = max(spread, abs(float(oracle.log_evidence(moved)) - value))
    return 20.0 * spread if math.isfinite(spread) else 0.0


def _posteriors(case: Case, fit: Fit, oracle: Oracle) -> Iterator[str]:
    for name, right in oracle.posterior(fit.params).items():
        total = right.sum(-1, keepdim=True)  # the weight of the row
        right, counted = right / total, total.squeeze(-1) > 1e-6
        if name.endswith("_unobserved"):  # where the label is known there is nothing to infer
            counted &= ~case.data["known"]
        found = fit.posterior(name).probs
        if found.squeeze().shape != right.squeeze().shape:  # plates without size may be left out
            yield f"posterior of {name} has shape {tuple(found.shape)}, right {tuple(right.shape)}"
            continue
        found = found.reshape(right.shape)
        worst = float((found - right).abs().amax(-1)[counted].max()) if bool(counted.any()) else 0.0
        if not worst < 1e-6:
            yield f"posterior of {name} is {worst:.3g} off"


def _optimum(case: Case, fit: Fit, oracle: Oracle) -> Iterator[str]:
    more, way = gain(oracle.objective, oracle.coordinates(fit.params))
    if more > LEFT * (1.0 + abs(fit.log_posterior)):
        yield f"'{fit.stop_reason}', but {way} leads {more:.4g} higher than {fit.log_posterior:.9g}"


def _elsewhere(case: Case, oracle: Oracle) -> Iterator[str]:
    """The E-step at other parameters than those of the fit: at those that gave the data."""
    with float64(), torch.no_grad():
        right = float(oracle.log_evidence(case.truth))
        slack = _rounding(oracle, case.truth, right)
    if not math.isfinite(right):
        return
    try:
        statistics = EM(case.model, case.objective).e_step(case.truth, **case.data)
    except Exception as error:
        yield f"e_step raised {type(error).__name__}: {str(error)[:200]}"
        return
    found = float(statistics.log_likelihood)
    if not _close(found, right, slack):
        yield f"e_step gives {found!r}, right {right!r}"


def _answers(case: Case, fit: Fit) -> Iterator[str]:
    """What else a fit can be asked must answer, or refuse in a sentence."""
    outcome = Outcome(case.seed, "", [])
    calls = {
        "print": lambda: str(fit),
        "summary": fit.summary,
        "log_prob": fit.log_prob,
        "predict": fit.predict,
        "sample": lambda: fit.sample(3, seed=0),
    }
    for what, call in calls.items():
        found = _guarded(outcome, what, call)
        if what == "log_prob" and found is not None and bool(found.isnan().any()):
            yield "log_prob has NaN"
        if what == "log_prob" and found is not None and found.dim() == 1:
            weights = case.data.get("row_weights", 0.25 if "scaled" in case.features else 1.0)
            total = float((weights * found).sum())
            if not abs(total - fit.log_likelihood) <= 1e-8 * (1.0 + abs(total)):
                yield f"log_prob adds up to {total!r}, the log likelihood is {fit.log_likelihood!r}"
    yield from outcome.faults
