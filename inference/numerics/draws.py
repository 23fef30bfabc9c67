"""Random numbers that do not depend on the device: drawn on the CPU, then brought to it.

For what must come out alike wherever the data are: probes of a model, directions to look along.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """A source of random numbers, apart from torch's global state.

    Args:
        seed: Which numbers.
        device: Where they are wanted; by default on the default device.
    """

    def __init__(self, seed: int, device: torch.device | None = None) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._device = torch.get_default_device() if device is None else device

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Numbers between 0 and 1."""
        return torch.rand(shape, generator=self._generator, dtype=torch.float64, device="cpu").to(
            self._device
        )

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Numbers from the standard normal."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu").to(
            self._device
        )

    def below(self, bound: int, shape: Sequence[int]) -> Tensor:
        """Whole numbers from 0 on."""
        return torch.randint(bound, shape, generator=self._generator, device="cpu").to(self._device)

    def permutation(self, count: int) -> Tensor:
        """The numbers below ``count`` in random order."""
        return torch.randperm(count, generator=self._generator, device="cpu").to(self._device)
