"""Small models of every structure, each with a little random data: what the E-step is tried on."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from tests.inference.brute_force import float64


@dataclass
class Example:
    """A model, its data, and random parameters for it."""

    name: str
    model: Callable[..., None]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def params(self, seed: int) -> dict[str, Tensor]:
        """A draw from the priors; ``pyro.param`` sites are moved at random within their support."""
        trace: Any
        with torch.random.fork_rng(), float64(), poutine.block(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls every single Wishart draw singular
            torch.manual_seed(seed)
            trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
            out: dict[str, Tensor] = {}
            for name, site in trace.nodes.items():
                if site["type"] == "param":
                    support = site["kwargs"].get("constraint", constraints.real)
                    transform = torch.distributions.transform_to(support)
                    free = transform.inv(site["value"].detach())
                    out[name] = transform(free + 0.5 * torch.randn(free.shape)).detach()
                elif site["type"] == "sample" and not site["is_observed"]:
                    fn = site["fn"]
                    if type(fn).__name__ != "_Subsample" and not fn.support.is_discrete:
                        out[name] = site["value"].detach()
        pyro.clear_param_store()
        return out


def mixture(x: Tensor, components: int = 3) -> None:
    """A univariate Gaussian mixture."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((components,), 2.0)))
    with pyro.plate("components", components):
        precisions = pyro.sample("precisions", dist.Gamma(3.0, 2.0))
        locs = pyro.sample("locs", dist.Normal(0.0, (0.3 * precisions).rsqrt()))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], precisions[z].rsqrt()), obs=x)


def mixture_full(x: Tensor, components: int = 2) -> None:
    """A Gaussian mixture with full covariances and its Normal-Wishart prior on two sites."""
    dim = x.shape[-1]
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((components,), 1.5)))
    with pyro.plate("components", components):
        precisions = pyro.sample(
            "precisions", dist.Wishart(torch.tensor(dim + 2.0), torch.eye(dim))
        )
        locs = pyro.sample(
            "locs", dist.MultivariateNormal(torch.zeros(dim), precision_matrix=0.2 * precisions)
        )
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], precision_matrix=precisions[z]), obs=x)


def tied_mixture(x: Tensor, components: int = 2) -> None:
    """One precision matrix for all components, no priors on locations or weights."""
    dim = x.shape[-1]
    start = torch.stack([x.mean(0) - 0.5, x.mean(0) + 0.5])[:components]
    weights = pyro.param(
        "weights", torch.full((components,), 1.0 / components), constraint=constraints.simplex
    )
    locs = pyro.param("locs", start)
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(dim + 2.0), torch.eye(dim)))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], precision_matrix=precision), obs=x)


def diagonal_mixture(x: Tensor, components: int = 2) -> None:
    """Independent columns, declared by to_event."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(components)))
    with pyro.plate("components", components):
        locs = pyro.sample("locs", dist.Normal(torch.zeros(x.shape[-1]), 3.0).to_event(1))
        scales = pyro.sample("scales", dist.LogNormal(torch.zeros(x.shape[-1]), 0.3).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]).to_event(1), obs=x)


def nested_plates(x: Tensor) -> None:
    """Groups of rows: a class for each group, a component for each row inside it."""
    groups, rows = x.shape
    classes = pyro.sample("classes", dist.Dirichlet(torch.ones(2)))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)).expand([2]).to_event(1))
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    shift = pyro.sample("shift", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("groups", groups, dim=-2):
        c = pyro.sample("c", dist.Categorical(classes))
        with pyro.plate("rows", rows, dim=-1):
            z = pyro.sample("z", dist.Categorical(weights[c]))
            pyro.sample("x", dist.Normal(locs[z] + shift[c], scale), obs=x)


def several_latents(x: Tensor, y: Tensor) -> None:
    """Two mixtures, unrelated but for the plate that they share."""
    left = pyro.sample("left_weights", dist.Dirichlet(torch.ones(2)))
    right = pyro.sample("right_weights", dist.Dirichlet(torch.ones(3)))
    rates = pyro.sample("rates", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    probs = pyro.sample("probs", dist.Beta(2.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Categorical(left))
        v = pyro.sample("v", dist.Categorical(right))
        pyro.sample("x", dist.Poisson(rates[u]), obs=x)
        pyro.sample("y", dist.Bernoulli(probs[v]), obs=y)


def factorial(x: Tensor) -> None:
    """Two latents that explain one observation, one table indexed by both."""
    left = pyro.sample("left", dist.Dirichlet(torch.ones(2)))
    right = pyro.sample("right", dist.Dirichlet(torch.ones(3)))
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([2, 3]).to_event(2))
    scale = pyro.sample("scale", dist.Gamma(4.0, 4.0))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Categorical(left))
        v = pyro.sample("v", dist.Categorical(right))
        pyro.sample("x", dist.Normal(locs[u, v], scale), obs=x)


def additive(x: Tensor) -> None:
    """Two latents whose effects add: no table, each location depends on the other."""
    left = pyro.sample("left", dist.Dirichlet(torch.ones(2)))
    right = pyro.sample("right", dist.Beta(2.0, 2.0))
    a = pyro.sample("a", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Categorical(left))
        v = pyro.sample("v", dist.Bernoulli(right))
        pyro.sample("x", dist.Normal(a[u] + b * v, 0.7), obs=x)


def chain_of_two(x: Tensor, y: Tensor) -> None:
    """A latent that depends on a latent, each with data of its own."""
    first = pyro.sample("first", dist.Dirichlet(torch.ones(2)))
    second = pyro.sample("second", dist.Dirichlet(torch.ones(3)).expand([2]).to_event(1))
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    rates = pyro.sample("rates", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Categorical(first))
        v = pyro.sample("v", dist.Categorical(second[u]))
        pyro.sample("x", dist.Normal(locs[u], 1.0), obs=x)
        pyro.sample("y", dist.Exponential(rates[v]), obs=y)


def tree(x: Tensor) -> None:
    """A root with two children, each with one leaf observed."""
    root = pyro.sample("root", dist.Dirichlet(torch.ones(2)))
    edges = pyro.sample("edges", dist.Dirichlet(torch.ones(2)).expand([2, 2]).to_event(2))
    probs = pyro.sample("probs", dist.Beta(2.0, 2.0).expand([2, 2]).to_event(2))
    with pyro.plate("rows", len(x)):
        r = pyro.sample("r", dist.Categorical(root))
        a = pyro.sample("a", dist.Categorical(edges[0][r]))
        b = pyro.sample("b", dist.Categorical(edges[1][r]))
        pyro.sample("xa", dist.Bernoulli(probs[0][a]), obs=x[:, 0])
        pyro.sample("xb", dist.Bernoulli(probs[1][b]), obs=x[:, 1])


def chain(x: Tensor, states: int = 2) -> None:
    """A hidden Markov model of order one."""
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(states)))
    transition = pyro.sample(
        "transition", dist.Dirichlet(torch.ones(states)).expand([states]).to_event(1)
    )
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([states]).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(4.0, 4.0))
    z: Any = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else transition[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], scale), obs=x[t])


def chain_of_order_two(x: Tensor) -> None:
    """A state that depends on the two before it."""
    initial = pyro.sample("initial", dist.Dirichlet(torch.full((2,), 1.5)))
    second = pyro.sample("second", dist.Dirichlet(torch.full((2,), 1.5)).expand([2]).to_event(1))
    table = pyro.sample("table", dist.Dirichlet(torch.full((2,), 1.5)).expand([2, 2]).to_event(2))
    rates = pyro.sample("rates", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    before: Any = None
    z: Any = None
    for t in pyro.markov(range(len(x)), history=2):
        if z is None:
            probs = initial
        elif before is None:
            probs = second[z]
        else:
            probs = table[before, z]
        before, z = z, pyro.sample(f"z_{t}", dist.Categorical(probs))
        pyro.sample(f"x_{t}", dist.Poisson(rates[z]), obs=x[t])


def autoregressive_chain(x: Tensor) -> None:
    """Data that depend on the state and on the state before it."""
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2)).expand([2]).to_event(1))
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([2, 2]).to_event(2))
    z: Any = pyro.sample("z_0", dist.Categorical(torch.tensor([0.4, 0.6])))
    for t in pyro.markov(range(1, len(x))):
        before, z = z, pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[before, z], 1.0), obs=x[t])


def chains(x: Tensor, lengths: Any) -> None:
    """Sequences of different lengths in a plate, the ends masked."""
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(2)))
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2)).expand([2]).to_event(1))
    rates = pyro.sample("rates", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("sequences", len(x)):
        z: Any = None
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                probs = initial if z is None else transition[z]
                z = pyro.sample(f"z_{t}", dist.Categorical(probs))
                pyro.sample(f"x_{t}", dist.Poisson(rates[z]), obs=x[:, t])


def vector_chain(x: Tensor) -> None:
    """A chain whose every step holds a plate of sensors."""
    transition = pyro.sample("transition", dist.Dirichlet(torch.ones(2)).expand([2]).to_event(1))
    probs = pyro.sample("probs", dist.Beta(1.5, 1.5).expand([2, x.shape[1]]).to_event(2))
    z: Any = torch.tensor(0)
    sensors = pyro.plate("sensors", x.shape[1])
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        with sensors as s:
            pyro.sample(f"x_{t}", dist.Bernoulli(probs[z, s]), obs=x[t])


def labelled(x: Tensor, labels: Tensor, known: Any) -> None:
    """Some labels are known: semi-supervised by ``obs_mask``."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), obs=labels, obs_mask=known)
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def labelled_by_masks(x: Tensor, labels: Tensor, known: Any) -> None:
    """The same by hand: known labels are observed through a noisy channel, masked elsewhere."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        with poutine.mask(mask=known):
            channel = torch.eye(3) * 0.97 + 0.01
            pyro.sample("label", dist.Categorical(channel[z]), obs=labels)
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def shared_scale(x: Tensor, y: Tensor) -> None:
    """One scale under two likelihoods of different families, one location shared by both."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    variance = pyro.sample("variance", dist.InverseGamma(3.0, 2.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], variance.sqrt()), obs=x)
        pyro.sample("y", dist.LogNormal(locs[z], variance.sqrt()), obs=y)


def one_hot(x: Tensor) -> None:
    """A OneHotCategorical latent, used as a vector."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(weights))
        pyro.sample("x", dist.Normal((z * locs).sum(-1), 1.0), obs=x)


def switch(x: Tensor) -> None:
    """A Bernoulli latent, used as an index and as a factor."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    rates = pyro.sample("rates", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("x", dist.Poisson(rates[z.long()]), obs=x)


def zero_inflated(x: Tensor) -> None:
    """A Bernoulli latent that switches between a rate and a constant."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("x", dist.Poisson(torch.where(z > 0, rate, torch.tensor(0.05))), obs=x)


def coin_flips(x: Tensor) -> None:
    """A global latent outside all plates."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    probs = pyro.sample("probs", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    z = pyro.sample("z", dist.Categorical(weights))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Bernoulli(probs[z]), obs=x)


def global_and_local(x: Tensor) -> None:
    """A global latent above a plate of local ones."""
    regime = pyro.sample("regime", dist.Dirichlet(torch.ones(2)))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)).expand([2]).to_event(1))
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    g = pyro.sample("g", dist.Categorical(regime))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights[g]))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def local_parameters(x: Tensor) -> None:
    """A parameter for every column plate entry, components to the left of it."""
    items = x.shape[-1]
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    item_plate = pyro.plate("items", items, dim=-1)
    with pyro.plate("classes", 2, dim=-2), item_plate:
        probs = pyro.sample("probs", dist.Beta(1.5, 2.0))
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Categorical(weights))
        with item_plate as i:
            pyro.sample("x", dist.Bernoulli(probs[z, i]), obs=x)


def unnormalised(x: Tensor) -> None:
    """Weights as logits and odds as sigmoids: nothing on its natural scale."""
    logits = pyro.sample("logits", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    odds = pyro.sample("odds", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=logits))
        pyro.sample("x", dist.Binomial(5, logits=odds[z]), obs=x)


def experts(x: Tensor, y: Tensor) -> None:
    """Weights that depend on a covariate: no map describes them."""
    slopes = pyro.sample("slopes", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=x[:, None] * slopes))
        pyro.sample("y", dist.Normal(locs[z], 1.0), obs=y)


def linkage(counts: Tensor) -> None:
    """Rao's recombination data: the split of the first cell is latent, one animal at a time."""
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0))
    half, quarter = torch.full((), 0.5), 0.25 * theta
    rest = 0.25 - quarter
    cells = torch.stack([half, quarter, rest, rest, quarter])
    show = torch.tensor([0, 0, 1, 2, 3])
    seen = torch.eye(4)[show]
    cell = torch.arange(4)
    with pyro.plate("cells", 4), poutine.scale(scale=counts):
        z = pyro.sample("z", dist.Categorical(cells))
        pyro.sample("y", dist.Categorical(seen[z]), obs=cell)


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def counts(*shape: int) -> Tensor:
        rates = torch.full(shape, 2.0, dtype=torch.float64)
        return torch.poisson(rates, generator=generator)

    def bits(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) < 0.6).double()

    apart = torch.tensor([-2.0, -1.5, 1.8, 2.2, 2.0], dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1])
    known = torch.tensor([True, False, True, False])
    return [
        Example("mixture", mixture, (normal(4),)),
        Example("mixture_full", mixture_full, (normal(5, 2),)),
        Example("tied_mixture", tied_mixture, (normal(5, 2),)),
        Example("diagonal_mixture", diagonal_mixture, (normal(5, 3),)),
        Example("nested_plates", nested_plates, (normal(2, 2),)),
        Example("several_latents", several_latents, (counts(3), bits(3))),
        Example("factorial", factorial, (normal(3),)),
        Example("additive", additive, (normal(3),)),
        Example("chain_of_two", chain_of_two, (normal(3), normal(3).exp())),
        Example("tree", tree, (bits(2, 2),)),
        Example("chain", chain, (normal(5),)),
        Example("chain_of_order_two", chain_of_order_two, (counts(5),)),
        Example("autoregressive_chain", autoregressive_chain, (normal(5),)),
        Example("chains", chains, (counts(3, 3), torch.tensor([3, 1, 2]))),
        Example("vector_chain", vector_chain, (bits(4, 3),)),
        Example("labelled", labelled, (normal(4), labels, known)),
        Example("labelled_by_masks", labelled_by_masks, (normal(4), labels, known)),
        Example("shared_scale", shared_scale, (apart, (apart.flip(0) * 0.8).exp())),
        Example("one_hot", one_hot, (normal(4),)),
        Example("switch", switch, (counts(5),)),
        Example("zero_inflated", zero_inflated, (counts(5),)),
        Example("coin_flips", coin_flips, (bits(5),)),
        Example("global_and_local", global_and_local, (normal(4),)),
        Example("local_parameters", local_parameters, (bits(4, 3),)),
        Example("unnormalised", unnormalised, (counts(5).clamp_max(5.0),)),
        Example("experts", experts, (normal(5), normal(5))),
    ]


EXAMPLES = {example.name: example for example in examples()}
