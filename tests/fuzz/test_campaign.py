"""A short slice of the campaign that ``make fuzz`` runs at length."""

import pytest
import torch

from tests.fuzz.__main__ import table
from tests.fuzz.cases import float64, make_case
from tests.fuzz.checks import run
from tests.fuzz.maximum import gain
from tests.fuzz.oracle import Oracle
from tests.fuzz.structures import STRUCTURES

SEEDS = {  # those of the first dozen that take less than a second
    "mixture": (0, 1, 3, 4),
    "several latents": (0, 3, 4, 5),
    "nested plates": (0, 1, 3, 5),
    "rows by items": (1, 3, 4, 6),
    "global latent": (2, 4, 5, 6),
    "no latent": (0, 1, 2, 3),
    "labelled": (0, 1, 2, 3),
    "markov loop": (0, 2, 4, 5),
    "DiscreteHMM": (1, 4, 5, 7),
    "MixtureSameFamily": (1, 2, 3, 4),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_random_models_agree_with_enumeration_by_pyro(structure: str) -> None:
    outcomes = [run(seed, structure) for seed in SEEDS[structure]]
    assert not any(outcome.faults for outcome in outcomes), table(outcomes)
    assert any(outcome.fate == "fitted" for outcome in outcomes), table(outcomes)


def test_a_seed_makes_the_same_model_again() -> None:
    one, two = make_case(3), make_case(3)
    assert one.script() == two.script()
    assert one.text != make_case(4).text


def test_the_oracle_notices_other_parameters() -> None:
    case = make_case(0, "mixture")
    with float64():
        oracle = Oracle(case)
        point = oracle.coordinates(case.truth)
        here, there = (oracle.objective(p).item() for p in (point, point + 0.1))
        more, way = gain(oracle.objective, point)
    assert here != pytest.approx(there, rel=1e-6)
    assert more > 0.1, way  # the parameters that gave the data are not their best fit


def test_the_posterior_of_the_oracle_is_bayes_rule() -> None:
    case = make_case(0, "labelled")
    with float64():
        found = Oracle(case).posterior(case.truth)["z_unobserved"]
    free = ~case.data["known"]
    assert torch.allclose(found.sum(-1)[free], torch.ones(int(free.sum()), dtype=found.dtype))
