"""Chains whose levels are alike: the same numbers as those of the general elimination."""

import pytest
import torch

from ember.inference.numerics.gaussian import chain
from ember.inference.numerics.gaussian.chain import ChainSystem
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.steady import is_steady
from ember.inference.numerics.gaussian.systems import gaussian_system


def steady_chain(steps: int, states: int) -> tuple[ChainSystem, torch.Tensor, torch.Tensor]:
    """A stationary system seen at every step; its first and last levels differ from the others."""
    entries = torch.arange(steps * states).view(steps, states)
    other, one = torch.triu_indices(states, states)
    now, then = entries[1:, :, None], entries[:-1, None, :]
    rows = [entries[:, one].flatten(), now.expand(-1, -1, states).flatten()]
    columns = [entries[:, other].flatten(), then.expand(-1, states, -1).flatten()]
    pattern = Pattern.of(steps * states, torch.cat(rows), torch.cat(columns))
    generator = torch.Generator().manual_seed(steps)
    move = 0.4 * torch.randn(states, states, generator=generator, dtype=torch.float64)
    eye = torch.eye(states, dtype=torch.float64)
    noise, square = eye + 0.1, move.mT @ (eye + 0.1) @ move
    later, former = pattern.rows // states, pattern.columns // states
    row, column = pattern.rows % states, pattern.columns % states
    values = torch.where(
        later == former, (noise + square + eye)[row, column], (-noise @ move)[row, column]
    )
    for level, block in ((0, 2.0 * noise + square), (steps - 1, noise + eye)):
        mine = (later == level) & (former == level)
        values = torch.where(mine, block[row, column], values)
    system = gaussian_system(pattern)
    assert isinstance(system, ChainSystem)
    info = torch.randn(steps * states, generator=generator, dtype=torch.float64)
    return system, info, values


@pytest.mark.parametrize(("steps", "states"), [(257, 3), (512, 2), (1000, 4), (1025, 1), (700, 7)])
def test_moments_are_those_of_the_general_elimination(
    steps: int, states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, info, precision = steady_chain(steps, states)
    assert is_steady(*system._blocks(info, precision)[:2])
    steady = system.integrate(info, precision)
    assert torch.equal(system.value(info, precision), steady.value)
    monkeypatch.setattr(chain, "is_steady", lambda *blocks: False)
    for found, expected in zip(steady, system.integrate(info, precision), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_one_level_that_differs_is_seen() -> None:
    system, info, precision = steady_chain(600, 2)
    place = system.pattern.place(torch.tensor([700]), torch.tensor([700]))
    precision[place] += 1.0
    assert not is_steady(*system._blocks(info, precision)[:2])


def test_a_precision_that_is_none_gives_nan() -> None:
    system, info, precision = steady_chain(600, 2)
    assert bool(system.integrate(info, -precision).value.isnan().all())
