"""A random model with data of its own, made again from its seed."""

import linecache
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor

from tests.fuzz.source import Source
from tests.fuzz.structures import STRUCTURES

__all__ = ["Case", "float64", "make_case"]

HEADER = """\
import math
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from ember.inference import EM
torch.set_default_dtype(torch.float64)
nan = float("nan")

"""


@dataclass(frozen=True)
class Case:
    """A model, its data, and the parameters from which they were drawn."""

    seed: int
    structure: str
    features: frozenset[str]
    objective: str
    text: str
    model: Callable[..., None]
    data: dict[str, Tensor]
    observed: tuple[str, ...]
    truth: dict[str, Tensor]

    def script(self) -> str:
        """A program of its own that fits the model."""
        torch.set_printoptions(precision=17, threshold=100_000, linewidth=100)
        given = "".join(f"    {name}={value!r},\n" for name, value in self.data.items())
        torch.set_printoptions(profile="default")
        call = f"EM(model, {self.objective!r}, seed=0, max_iter=200).fit(**data)"
        given = given.replace("tensor(", "torch.tensor(")
        return f"{HEADER}\n{self.text}\n\ndata = dict(\n{given})\nprint({call})\n"


class float64:
    """Runs models in double precision, Pyro's state and the random numbers sheltered."""

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        self.random = torch.random.get_rng_state()
        torch.set_default_dtype(torch.float64)
        pyro.clear_param_store()

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)
        torch.random.set_rng_state(self.random)
        pyro.clear_param_store()


def make_case(seed: int, structure: str | None = None) -> Case:
    """The model and data of a seed."""
    source = Source(seed)
    drawn = source.pick(*STRUCTURES)
    structure = structure or drawn
    STRUCTURES[structure](source)
    objective = source.pick("map", "mle")
    text = source.text()
    with float64():
        torch.manual_seed(seed)
        model = _compile(text, seed)
        data = _draw(model, source)
    _gaps(source, data)
    return Case(
        seed, structure, frozenset(source.features), objective, text, model,
        {**data, **source.inputs}, tuple(source.observed), source.truth,
    )  # fmt: skip


def _compile(text: str, seed: int) -> Callable[..., None]:
    file = f"<model {seed}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    names: dict[str, Any] = {
        "math": math, "pyro": pyro, "dist": dist, "torch": torch, "poutine": poutine,
        "constraints": constraints,
    }  # fmt: skip
    exec(compile(text, file, "exec"), names)
    model: Callable[..., None] = names["model"]
    return model


class _Draw(Messenger):
    """Holds the parameters and draws the data."""

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.params = params

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.params:
            msg["value"], msg["done"] = self.params[msg["name"]], True
        elif msg["is_observed"] and not msg["name"].startswith("z"):
            msg["is_observed"] = False
            length = msg["value"].shape
            msg["value"] = None
            base = msg["fn"]
            if isinstance(base, dist.DiscreteHMM):
                msg["value"], msg["done"] = _draw_chain(base, length), True

    def _pyro_param(self, msg: Any) -> None:
        msg["value"], msg["done"] = self.params[msg["name"]], True


def _draw_chain(chain: Any, shape: torch.Size) -> Tensor:
    """Pyro's convention: the state before the data is drawn first, then moved."""
    steps = shape[-1 - chain.observation_dist.event_dim]
    sequences = shape[: len(shape) - 1 - chain.observation_dist.event_dim]
    state = dist.Categorical(logits=chain.initial_logits).expand(sequences).sample()
    values = []
    for _ in range(steps):
        state = dist.Categorical(logits=chain.transition_logits[state]).sample()
        every = chain.observation_dist.expand((*sequences, *chain.observation_dist.batch_shape))
        drawn = every.sample()
        event = chain.observation_dist.event_shape
        place = state.reshape(*state.shape, 1, *(1,) * len(event)).expand(*state.shape, 1, *event)
        values.append(drawn.gather(len(sequences), place).squeeze(len(sequences)))
    return torch.stack(values, len(sequences))


def _draw(model: Callable[..., None], source: Source) -> dict[str, Tensor]:
    data = {name: torch.zeros(shape) for name, shape in source.observed.items()}
    with _Draw(source.truth), pyro.validation_enabled(False):
        trace = poutine.trace(model).get_trace(**data, **source.inputs)
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, shape in source.observed.items():
        if name in nodes:
            data[name] = nodes[name]["value"].detach().double()
            continue
        events = nodes[f"{name}_0"]["fn"].event_dim  # a loop: the steps are the dim before them
        steps = [nodes[f"{name}_{t}"]["value"] for t in range(shape[-1 - events])]
        data[name] = torch.stack(steps, len(shape) - 1 - events).double()
    return data


def _gaps(source: Source, data: dict[str, Tensor]) -> None:
    """Leaves some entries out, or whole rows, or parts of normal vectors."""
    for name, value in data.items():
        if not source.chance(0.15):
            continue
        source.features.add("gaps")
        gone = source.uniform(*value.shape) < 0.12
        if name not in source.flexible and "MultivariateNormal" not in source.features:
            gone = gone.any(-1, keepdim=True).expand(value.shape) & gone[..., :1]
        data[name] = value.masked_fill(gone, torch.nan)
