"""The structure of a model with its loops stacked."""

from dataclasses import replace

from ember.inference.reading.checks.enumeration import check_each_value
from ember.inference.reading.loops.finding import find_loops
from ember.inference.reading.loops.stacking import settled, stack_loops
from ember.inference.reading.matching.arguments import probe_values
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace

__all__ = ["with_loops"]


def with_loops(structure: Structure, trace: Trace) -> tuple[Structure, Trace]:
    """A structure and a run of it, the sites of its loops stacked.

    One more run, at random parameters, tells what varies in time.

    Raises:
        ValueError: If values of a latent are not where Pyro enumerates them.
    """
    hidden = {n for c in structure.composites for n in (c.site, c.latent, c.initial)}
    latent = [name for name in structure.latent if name not in hidden]
    observed = [name for name in structure.observed if name not in hidden]
    loops_found = find_loops(trace, latent, observed, structure.steps, {*trace.nodes, *hidden})
    if not loops_found:
        return structure, trace
    try:
        params = probe_values(structure, 0)
        run = structure.trace(params)
    except (ValueError, RuntimeError, ArithmeticError, IndexError):
        return structure, trace  # what varies is not known
    check_each_value(structure, params, run)
    settle = (settled(run, loop, structure.nesting) for loop in loops_found)
    loops = tuple(loop for loop in settle if loop is not None)
    stack_loops(trace, loops, structure.nesting)
    families = {family.names[0]: (loop, family) for loop in loops for family in loop.families}
    gone = {name for loop in loops for family in loop.families for name in family.names}
    plates = {}
    for name, around in structure.plates.items():
        if name in families:
            loop, family = families[name]
            if family is loop.chain:
                plates[loop.initial] = around
            plates[family.name] = around
        elif name not in gone:
            plates[name] = around

    def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
        known = {first: family.name for first, (_, family) in families.items()}
        return tuple(known.get(n, n) for n in names if n in known or n not in gone)

    rolled = replace(
        structure, latent=renamed(structure.latent), observed=renamed(structure.observed),
        plates=plates, loops=loops,
    )  # fmt: skip
    return rolled, trace
