"""A sheltered global state: float64, seeds and threads as Ember needs them, then as they were."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.overrides import TorchFunctionMode

from ember.inference.inputs.devices import device_of, on_device
from ember.inference.inputs.options import check_seed
from ember.inference.numerics.threads import one_thread

__all__ = ["Promoted", "declare_from_outside", "sheltered", "threads_for"]


ONE_THREAD = 300_000  # numbers; with fewer, threads cost more than they bring


class Promoted(TorchFunctionMode):
    """Runs a model's own float32 tensors in float64, so that they meet its parameters as equals.

    Attributes:
        had_use: Whether there was anything to promote.
    """

    def __init__(self) -> None:
        super().__init__()
        self.had_use = False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if not kwargs and not any(map(_may_hold_narrow, args)):  # hundreds of calls for a site
            return func(*args)
        named = {name: self._promote(value) for name, value in (kwargs or {}).items()}
        return func(*map(self._promote, args), **named)

    def _promote(self, value: object) -> object:
        if isinstance(value, Tensor):
            if value.dtype not in _NARROW:
                return value
            self.had_use = True
            return value.double()
        if type(value) is tuple:
            return tuple(map(self._promote, value))
        if type(value) is list:
            return [self._promote(item) for item in value]
        if type(value) is dict:
            return {key: self._promote(item) for key, item in value.items()}
        return value


_NARROW = (torch.float32, torch.float16)
_CONTAINERS = (tuple, list, dict)


def _may_hold_narrow(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.dtype in _NARROW
    return type(value) in _CONTAINERS


@contextlib.contextmanager
def sheltered(seed: int | None = None, data: object = (), beside: object = ()) -> Iterator[None]:
    """Runs its body in float64, where the data are, with its own random state and parameter store.

    Whatever the body draws or stores, the caller's default dtype, global random state and Pyro
    parameter store are as before afterwards. Without a ``seed`` the body starts from the
    caller's random state, so ``pyro.set_rng_seed`` still governs it. On small ``data`` it runs on
    one thread: operations on small tensors are over before a second thread has woken up, and on
    a busy machine waiting for it costs many times the work. What comes ``beside`` the data counts
    with them, but they alone decide where the work is done.
    """
    check_seed("seed", seed)
    dtype, device = torch.get_default_dtype(), device_of(data)
    store = pyro.get_param_store()
    _outside.append((store._params, store._constraints))
    own_state = torch.random.fork_rng(devices=[])
    with own_state, on_device(device), store.scope(), threads_for((data, beside)):
        torch.set_default_dtype(torch.float64)
        if seed is not None:
            _sow(seed, device)
        try:
            yield
        finally:
            _outside.pop()
            torch.set_default_dtype(dtype)


def threads_for(data: object) -> contextlib.AbstractContextManager[None]:
    """Runs its body on one thread if the data are few, and as it was otherwise."""
    return one_thread(_elements(data) < ONE_THREAD)


def _sow(seed: int, device: torch.device) -> None:
    """Seeds what draws: the CPU's generator, and that of the device.

    Not ``torch.manual_seed``: it seeds the other devices too, which are the caller's, and of those
    that might still come torch keeps a record of each call, stack and all.
    """
    torch.default_generator.manual_seed(int(seed))
    if device.type != "cpu":
        generators = getattr(torch, device.type).default_generators
        generators[device.index or 0].manual_seed(int(seed))


# The parameter stores that are sheltered, outermost first: unconstrained values and constraints.
_outside: list[tuple[Mapping[str, Tensor], Mapping[str, constraints.Constraint]]] = []


def declare_from_outside(name: str) -> bool:
    """Copies a parameter from a sheltered store into the one at hand; says whether there is one."""
    store = pyro.get_param_store()
    for values, supports in _outside:
        if name in values and name not in store:
            value = transform_to(supports[name])(values[name].detach())
            store.setdefault(name, value.clone().double(), supports[name])
    return name in store


def _elements(data: object) -> int:
    """How many numbers a user's arguments hold, containers opened."""
    if isinstance(data, Tensor):
        return data.numel()
    if isinstance(data, (np.ndarray, pd.DataFrame, pd.Series)):
        return int(data.size)
    if isinstance(data, Mapping):
        return sum(_elements(item) for item in data.values())
    if isinstance(data, (list, tuple)) and not all(isinstance(item, (int, float)) for item in data):
        return sum(_elements(item) for item in data)
    return len(data) if isinstance(data, (list, tuple)) else 0
