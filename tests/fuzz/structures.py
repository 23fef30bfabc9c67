"""The structures of random models: plates, several latents, chains, composites, labels."""

from collections.abc import Callable

import torch

from tests.fuzz.emissions import Index, emission
from tests.fuzz.source import Source

__all__ = ["STRUCTURES"]


LATENTS = (
    "Categorical",
    "Categorical",
    "Categorical",
    "Bernoulli",
    "OneHotCategorical",
    "Binomial",
)


def _latent(source: Source, name: str, depth: int, parent: Index, states: int = 0) -> Index:
    """A discrete latent site, whose probabilities may depend on another one."""
    kind = source.pick(*LATENTS)
    states = states or source.pick(2, 2, 3, 4)
    if kind == "Bernoulli":
        states = 2
    source.features.add(f"latent {kind}")
    if kind in ("Bernoulli", "Binomial"):
        table = parent.of(source.parameter(f"{name}_probs", "unit", parent.sizes))
        counts = "" if kind == "Bernoulli" else f"{states - 1}, "
        text, index = f"dist.{kind}({counts}{table})", f"{name}.long()"
    else:
        if source.chance(0.15):
            table = source.parameter(f"{name}_logits", "real", parent.sizes, (states,), size=0.5)
            argument = f"logits={parent.of(table)}"
        else:
            table = source.parameter(f"{name}_weights", "simplex", parent.sizes, (states,))
            argument = parent.of(table)
        text = f"dist.{kind}({argument})"
        index = name if kind == "Categorical" else f"{name}.argmax(-1)"
    source.line(depth, f"{name} = pyro.sample({name!r}, {text})")
    return Index((states,), index)


def _observe(
    source: Source,
    name: str,
    depth: int,
    index: Index,
    shape: tuple[int, ...],
    *,
    inputs: bool = True,
    columns: int | None = None,
    step: str = "",
) -> None:
    """An observed site.

    Args:
        source: Where its statement and parameters go.
        name: Of the site and of its data.
        depth: How far its statement is indented.
        index: How tables of parameters are read.
        shape: The shape of its plates (and steps).
        inputs: Whether there may be known inputs of the shape of the plates.
        columns: The size of its events, drawn if it is None.
        step: In a loop, how the data of step ``t`` are cut out.
    """
    text, event = emission(source, name, index, shape if inputs else None, columns=columns)
    source.observed[name] = (*shape, *event)
    data, site = name, repr(name)
    if step:
        data, site = f"{name}[{step}{', :' * len(event)}]", f"f'{name}_{{t}}'"
    if inputs and source.chance(0.12):
        mask = source.given(f"{name}_mask", source.uniform(*shape) < 0.8)
        source.features.add("mask")
        if source.chance(0.5):
            text += f".mask({mask})"
        else:
            source.line(depth, f"with poutine.mask(mask={mask}):")
            depth += 1
    source.line(depth, f"pyro.sample({site}, {text}, obs={data})")


def mixture(source: Source) -> None:
    """Rows of one or two columns below one latent, with weights or masks of rows."""
    rows = source.rng.randint(12, 40)
    source.line(1, "with pyro.plate('rows', len(y)):")
    depth = 2
    if source.chance(0.12):
        source.features.add("row weights")
        source.given("row_weights", (3.0 * source.uniform(rows)).ceil())
        source.line(2, "with poutine.scale(scale=row_weights):")
        depth = 3
    elif source.chance(0.1):
        source.features.add("masked latent")
        source.given("row_mask", source.uniform(rows) < 0.8)
        source.line(2, "with poutine.mask(mask=row_mask):")
        depth = 3
    elif source.chance(0.1):
        source.features.add("scaled")
        source.line(2, "with poutine.scale(scale=0.25):")
        depth = 3
    z = _latent(source, "z", depth, Index())
    _observe(source, "y", depth, z, (rows,))
    if source.chance(0.35):
        _observe(source, "y2", depth, z, (rows,))


def several(source: Source) -> None:
    """Two latents for each row: independent, or one below the other; read together or apart."""
    rows = source.rng.randint(12, 30)
    source.line(1, "with pyro.plate('rows', len(y)):")
    u = _latent(source, "u", 2, Index(), source.pick(2, 3))
    dependent = source.chance(0.5)
    v = _latent(source, "v", 2, u if dependent else Index(), 2)
    both = Index((*u.sizes, *v.sizes), f"{u.text}, {v.text}")
    first = source.pick(both, u)
    _observe(source, "y", 2, first, (rows,))
    if first is u or source.chance(0.5):
        _observe(source, "y2", 2, source.pick(v, both), (rows,))


def nested(source: Source) -> None:
    """Groups of rows, with latents of groups, of rows, or of both."""
    groups, rows = source.rng.randint(3, 6), source.rng.randint(4, 8)
    source.line(1, "with pyro.plate('groups', len(y), dim=-2):")
    where = source.pick("groups", "rows", "both")
    g = _latent(source, "g", 2, Index(), 2) if where != "rows" else Index()
    source.line(2, "with pyro.plate('members', y.shape[1], dim=-1):")
    z = _latent(source, "z", 3, g if source.chance(0.7) else Index()) if where != "groups" else g
    index = z
    if where == "both" and source.chance(0.3):
        index = Index((*g.sizes, *z.sizes), f"{g.text}, {z.text}")
    _observe(source, "y", 3, index, (groups, rows), columns=0)


def items(source: Source) -> None:
    """Rows by items: each item has parameters of its own for each class."""
    rows, columns = source.rng.randint(12, 30), source.pick(2, 3)
    source.line(1, "items = pyro.plate('items', y.shape[1], dim=-1)")
    source.line(1, "with pyro.plate('rows', len(y), dim=-2):")
    z = _latent(source, "z", 2, Index())
    source.line(2, "with items as item:")
    index = Index((*z.sizes, columns), f"{z.text}, item")
    _observe(source, "y", 3, index, (rows, columns), inputs=False, columns=0)


def overall(source: Source) -> None:
    """A latent outside all plates, with or without one in the rows below it."""
    rows = source.rng.randint(8, 25)
    g = _latent(source, "g", 1, Index(), 2)
    source.line(1, "with pyro.plate('rows', len(y)):")
    z = _latent(source, "z", 2, g) if source.chance(0.6) else g
    _observe(source, "y", 2, z, (rows,))


def plain(source: Source) -> None:
    """No latent at all: regressions and single distributions."""
    rows = source.rng.randint(10, 40)
    source.line(1, "with pyro.plate('rows', len(y)):")
    _observe(source, "y", 2, Index(), (rows,))
    if source.chance(0.3):
        _observe(source, "y2", 2, Index(), (rows,))


def labelled(source: Source) -> None:
    """A mixture of which some labels are known."""
    rows, states = source.rng.randint(12, 30), source.pick(2, 3)
    known = source.uniform(rows) < 0.4
    known[:states] = True
    source.given("known", known)
    labels = torch.arange(rows) % states
    source.given("labels", labels)
    source.line(1, "with pyro.plate('rows', len(y)):")
    source.parameter("z_weights", "simplex", (), (states,))
    source.line(2, "z = pyro.sample('z', dist.Categorical(z_weights), obs=labels, obs_mask=known)")
    _observe(source, "y", 2, Index((states,), "z"), (rows,))


def loop(source: Source) -> None:
    """A chain written step by step, alone or for several sequences, some of them short."""
    states, steps = source.pick(2, 2, 3), source.rng.randint(5, 10)
    sequences = source.pick(0, 0, 3, 5)
    shape = (sequences, steps) if sequences else (steps,)
    source.parameter("initial", "simplex", (), (states,))
    second = source.chance(0.15)
    source.parameter("transition", "simplex", (states,), (states,))
    if second:
        source.features.add("order two")
        source.parameter("table", "simplex", (states, states), (states,))
    depth = 1
    if sequences:
        source.line(1, "with pyro.plate('sequences', len(y)):")
        depth = 2
    source.line(depth, "z = before = None")
    history = ", history=2" if second else ""
    source.line(depth, f"for t in pyro.markov(range(y.shape[{len(shape) - 1}]){history}):")
    depth += 1
    if sequences and source.chance(0.4):
        source.features.add("lengths")
        source.given("lengths", 2 + (source.uniform(sequences) * (steps - 1)).long())
        source.line(depth, "with poutine.mask(mask=t < lengths):")
        depth += 1
    probs = "initial if t == 0 else transition[z]"
    if second:
        probs += " if t == 1 else table[before, z]"
    draw = f"pyro.sample(f'z_{{t}}', dist.Categorical({probs}))"
    source.line(depth, f"before, z = z, {draw}" if second else f"z = {draw}")
    index = Index((states,), "z")
    cut = ":, t" if sequences else "..., t"
    _observe(source, "y", depth, index, shape, inputs=False, step=cut)
    if source.chance(0.25):
        _observe(source, "y2", depth, index, shape, inputs=False, step=cut)


def hidden_markov(source: Source) -> None:
    """A chain as one distribution, for one sequence or several."""
    states, steps = source.pick(2, 3), source.rng.randint(6, 14)
    sequences = source.pick(0, 3)
    shape = (sequences, steps) if sequences else (steps,)
    source.parameter("initial", "simplex", (), (states,))
    source.parameter("transition", "simplex", (states,), (states,))
    text, event = emission(source, "y", Index((states,), ""), None)
    text = text.replace("[]", "") if "[]" in text else f"{text}.expand([{states}])"
    source.observed["y"] = (*shape, *event)
    chain = f"dist.DiscreteHMM(initial.log(), transition.log(), {text})"
    if sequences:
        source.line(1, "with pyro.plate('sequences', len(y)):")
    source.line(2 if sequences else 1, f"pyro.sample('y', {chain}, obs=y)")


def family_mixture(source: Source) -> None:
    """A mixture as one distribution, in a plate of rows."""
    rows, states = source.rng.randint(12, 30), source.pick(2, 3)
    source.parameter("weights", "simplex", (), (states,))
    text, event = emission(source, "y", Index((states,), ""), None)
    text = text.replace("[]", "") if "[]" in text else f"{text}.expand([{states}])"
    source.observed["y"] = (rows, *event)
    source.line(1, "with pyro.plate('rows', len(y)):")
    both = f"dist.MixtureSameFamily(dist.Categorical(weights), {text})"
    source.line(2, f"pyro.sample('y', {both}, obs=y)")


STRUCTURES: dict[str, Callable[[Source], None]] = {
    "mixture": mixture,
    "several latents": several,
    "nested plates": nested,
    "rows by items": items,
    "global latent": overall,
    "no latent": plain,
    "labelled": labelled,
    "markov loop": loop,
    "DiscreteHMM": hidden_markov,
    "MixtureSameFamily": family_mixture,
}
