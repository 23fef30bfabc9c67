"""The device that a user's data are on, which is where everything is computed.

The other arguments are brought there, and while Ember works it is torch's default device, so that a
tensor that a model makes without naming a device lies with the data.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["device_of", "on_device"]


def device_of(data: object) -> torch.device:
    """Where the data are: on an accelerator if any tensor among them is, containers opened.

    Without a tensor, as arrays and data frames alone, they go to torch's default device.

    Raises:
        ValueError: If they are on several accelerators.
    """
    found = set(_devices(data))
    away = sorted((each for each in found if each.type != "cpu"), key=str)
    if len(away) > 1:
        listed = " and ".join(map(str, away))
        raise ValueError(f"the data are on several devices, {listed}; bring them to one of them.")
    if away:
        return away[0]
    return torch.device("cpu") if found else torch.get_default_device()


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Makes it the default device, with a random state of its own that is afterwards as before."""
    with contextlib.ExitStack() as stack:
        if device.type != "cpu":
            stack.enter_context(torch.random.fork_rng([device], device_type=device.type))
        if device != torch.get_default_device():
            stack.enter_context(device)
        yield


def _devices(data: object) -> Iterator[torch.device]:
    if isinstance(data, Tensor):
        yield data.device
    elif isinstance(data, Mapping):
        for item in data.values():
            yield from _devices(item)
    elif isinstance(data, (list, tuple)):
        for item in data:
            yield from _devices(item)
