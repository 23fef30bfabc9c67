"""Which unmarked sites are Gaussian latents: those of which the joint mode would mislead.

A Normal or MultivariateNormal site that the data do not show is a parameter unless

- its prior has a parameter, or entries of one, that enter no data, and nothing but such priors: the
  scale of random effects, of which the joint mode is unbounded or biased;
- its prior has a Gaussian latent, or varies with a discrete one;
- a later step is such a latent, of the same ``pyro.markov`` loop or by the number in its name;
- it has a value for each row of a plate, and a parameter multiplies it: loadings, or a scale that
  stands before standard normal effects.

A site of which a discrete latent chooses the entry that a row reads, as the locations of a
mixture's components, stays a parameter; so does one that any site reads other than in the location
of a Normal or MultivariateNormal. A mark of the model or of ``integrate`` always decides.

Reference: Harville (1977), *Maximum likelihood approaches to variance component estimation and to
related problems*, JASA 72, 320-338.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.draws import Draws
from ember.inference.reading.gaussian.slices import few_rows
from ember.inference.reading.graphs import leaves_of
from ember.inference.reading.matching.arguments import probe_values
from ember.inference.reading.sequences import base_name
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace, TraceNode
from ember.inference.reading.unwrapping import given_arguments, unwrap

__all__ = ["gaussian_candidates", "is_gaussian"]


def is_gaussian(fn: Distribution) -> bool:
    """Whether a distribution is one that an exact integration can take."""
    return type(unwrap(fn).base) in (dist.Normal, dist.MultivariateNormal)


def gaussian_candidates(structure: Structure, plain: Trace, fixed: set[str]) -> dict[str, str]:
    """The sites that are to be integrated although nothing marks them, each with the reason.

    Args:
        structure: The roles by marks alone.
        plain: A plain run.
        fixed: Sites that are marked, one way or the other.
    """
    names = {
        name
        for name, parameter in structure.parameters.items()
        if parameter.has_prior and name not in fixed and is_gaussian(plain.nodes[name]["fn"])
    }
    if not names:
        return {}
    few = few_rows(structure)
    try:
        try:  # where nothing happens to be zero, and so no slope
            graph = _graph(few, probe_values(few, 0))
        except (RuntimeError, ValueError, ArithmeticError):
            graph = _graph(few, few.start)
    except (RuntimeError, ValueError, ArithmeticError, TypeError, LookupError):
        return {}  # the model cannot be run so; what is wrong with it is told elsewhere
    batches = {name: plain.nodes[name]["fn"].batch_shape for name in names}
    return _found(graph, batches, structure)


# -- what reads what ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Graph:
    """The sites that each site is computed from, at one value of the parameters.

    Attributes:
        values: The values of parameters and latents.
        trace: The run.
        parents: For each site with a density what its distribution, or its data, depend on.
        other: What it depends on other than by the location of a Gaussian.
    """

    values: Mapping[str, Tensor]
    trace: Trace
    parents: dict[str, set[str]] = field(default_factory=dict)
    other: dict[str, set[str]] = field(default_factory=dict)

    def children(self, name: str) -> set[str]:
        return {site for site, parents in self.parents.items() if name in parents}

    def entries(self, site: str, parent: str) -> Tensor:
        """Which entries of a parent the distribution of a site, or its data, depend on."""
        loc, others = _read(self.trace.nodes[site], site in self.values)
        tensors = [t for t in (*loc, *others) if t.requires_grad]
        draws = Draws(0, self.values[parent].device)  # weights that no sum to one cancels
        weighed = [(t * (1.0 + draws.normal(t.shape).abs())).sum() for t in tensors]
        return _entries_read(torch.stack(weighed).sum(), self.values[parent])


def _graph(structure: Structure, at: Mapping[str, Tensor]) -> _Graph:
    with torch.enable_grad():
        values = {name: at[name].detach().clone().requires_grad_() for name in structure.parameters}
        zeros = {n: torch.zeros(shape) for n, shape in structure.gaussian.items()}
        values.update({name: zero.requires_grad_() for name, zero in zeros.items()})
        graph = _Graph(values, structure.trace(values))
    for name in (*structure.factor_names, *structure.parameters):
        node = graph.trace.nodes.get(name)
        if node is None or node["type"] != "sample":
            continue
        loc, others = _read(node, name in values)
        graph.other[name] = _sources(graph, others)
        graph.parents[name] = graph.other[name] | _sources(graph, loc)
    return graph


def _read(node: TraceNode, is_free: bool) -> tuple[list[Tensor], list[Tensor]]:
    """What a site's density is computed from: the location of a Gaussian, and all else."""
    arguments = {by: value for by, (_, value) in given_arguments(unwrap(node["fn"]).base).items()}
    loc = [arguments.pop("loc")] if is_gaussian(node["fn"]) else []
    return loc, [*arguments.values(), *([] if is_free else [node["value"]])]


def _sources(graph: _Graph, tensors: list[Tensor]) -> set[str]:
    found = leaves_of(*(tensor for tensor in tensors if tensor.requires_grad))
    return {name for name, value in graph.values.items() if id(value) in found}


# -- the rule -----------------------------------------------------------------------------------


def _found(
    graph: _Graph, batches: Mapping[str, torch.Size], structure: Structure
) -> dict[str, str]:
    names = {*batches}
    varying = {n for n in names if graph.trace.nodes[n]["fn"].batch_shape != batches[n]}
    able = {
        name
        for name in names
        if not any(name in graph.other[site] for site in graph.children(name))
        and not any(_is_fixed(site, structure, names) for site in graph.children(name))
        and not _is_chosen(graph, name)
    }
    found: dict[str, str] = {}
    while True:
        latent = {*found, *structure.gaussian}
        more = {
            name: why
            for name in sorted(able - latent)
            if (why := _why(graph, name, able, latent, varying, structure.steps))
        }
        if not more:
            return found
        found.update(more)


def _is_fixed(site: str, structure: Structure, names: set[str]) -> bool:
    """Whether a site is a parameter that cannot become a latent: its prior must read none."""
    return site in structure.parameters and site not in names


def _why(
    graph: _Graph,
    name: str,
    able: set[str],
    latent: set[str],
    varying: set[str],
    steps: frozenset[str],
) -> str:
    """Why a site is a latent; empty if it is none."""
    if name in varying:
        return "its prior depends on a discrete latent"
    parents = graph.parents.get(name, set())
    if parents & latent:
        return f"its prior has the latent '{min(parents & latent)}'"
    after = {n for n in graph.children(name) & latent if _goes_on(name, n, steps)}
    if after:
        return f"the later step '{min(after)}' is a latent"
    for parent in sorted(parents - able - latent):
        others = graph.children(parent) - able - latent
        if not others:
            return f"its prior has '{parent}', which enters no data"
        read = graph.entries(name, parent)
        if bool(read.any()) and not any(
            bool((graph.entries(n, parent) & read).any()) for n in others
        ):
            return f"its prior has entries of '{parent}' that enter no data"
    if not graph.trace.nodes[name]["cond_indep_stack"]:
        return ""
    multipliers = _multipliers(graph, name)
    in_plates = {n for n in multipliers & able if graph.trace.nodes[n]["cond_indep_stack"]}
    if multipliers - latent and not in_plates and not multipliers & latent:
        return f"'{min(multipliers)}' multiplies it"
    return ""


def _goes_on(name: str, after: str, steps: frozenset[str]) -> bool:
    """Whether one site is a later step of another: of one loop, or ``level_1`` of ``level_0``."""
    return {name, after} <= steps or base_name(name) == base_name(after) is not None


def _multipliers(graph: _Graph, name: str) -> set[str]:
    """The parameters on which the coefficient of a site, in the locations that read it, depends."""
    found = set[str]()
    for site in graph.children(name):
        loc = _location(graph.trace.nodes[site])
        if not loc.requires_grad:
            continue
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(
                loc.sum(), graph.values[name], create_graph=True, allow_unused=True
            )
        if slope is not None and slope.requires_grad:
            found |= _sources(graph, [slope])
    return found - {name}


def _is_chosen(graph: _Graph, name: str) -> bool:
    """Whether a discrete latent decides which entries of a site a row reads."""
    for site in graph.children(name):
        node = graph.trace.nodes[site]
        loc = _location(node)
        dims = _enumerated_dims(node, loc)
        for dim in dims:
            seen = [
                _entries_read(part, graph.values[name])
                for part in loc.unbind(dim)[: 2 if loc.size(dim) > 1 else 1]
            ]
            if any(not torch.equal(seen[0], other) for other in seen[1:]):
                return True
    return False


def _entries_read(part: Tensor, value: Tensor) -> Tensor:
    """Which entries of a value a location is computed from."""
    if not part.requires_grad:
        return torch.zeros_like(value, dtype=torch.bool)
    (slope,) = torch.autograd.grad(part.sum(), value, retain_graph=True, allow_unused=True)
    return torch.zeros_like(value, dtype=torch.bool) if slope is None else slope != 0


def _enumerated_dims(node: TraceNode, loc: Tensor) -> list[int]:
    """The dims of a location that are those of discrete latents."""
    base = unwrap(node["fn"])
    inner = len(base.base.event_shape) + base.reinterpreted
    named = node["infer"].get("_dim_to_symbol", {})
    plates = {frame.dim for frame in node["cond_indep_stack"]}
    dims = [dim - inner for dim in named if dim not in plates]
    return [dim for dim in dims if -dim <= loc.dim() and loc.size(dim) > 1]


def _location(node: TraceNode) -> Tensor:
    return given_arguments(unwrap(node["fn"]).base)["loc"][1]
