"""What a model observes: a random distribution, and how its arguments come about."""

import math
from dataclasses import dataclass

import torch

from tests.fuzz.source import Source, literal

__all__ = ["Index", "emission"]

# Each family: its arguments and their roles.
FAMILIES: dict[str, dict[str, str]] = {
    "Normal": {"loc": "location", "scale": "scale"},
    "LogNormal": {"loc": "log location", "scale": "shape"},
    "Laplace": {"loc": "location", "scale": "scale"},
    "Gumbel": {"loc": "location", "scale": "scale"},
    "StudentT": {"df": "freedom", "loc": "location", "scale": "scale"},
    "Exponential": {"rate": "rate"},
    "Gamma": {"concentration": "shape", "rate": "rate"},
    "InverseGamma": {"concentration": "shape", "rate": "scale"},
    "Weibull": {"scale": "scale", "concentration": "shape"},
    "HalfNormal": {"scale": "scale"},
    "Beta": {"concentration1": "shape", "concentration0": "shape"},
    "VonMises": {"loc": "angle", "concentration": "shape"},
    "Poisson": {"rate": "count"},
    "Geometric": {"probs": "probability"},
    "Bernoulli": {"probs": "probability"},
    "Binomial": {"total_count": "total", "probs": "probability"},
    "NegativeBinomial": {"total_count": "bounded shape", "probs": "probability"},
    "GammaPoisson": {"concentration": "bounded shape", "rate": "rate of counts"},
    "BetaBinomial": {
        "concentration1": "bounded shape",
        "concentration0": "bounded shape",
        "total_count": "total",
    },
    "ZeroInflatedPoisson": {"rate": "count", "gate": "probability"},
    "Categorical": {"probs": "simplex"},
    "OneHotCategorical": {"probs": "simplex"},
    "Multinomial": {"probs": "simplex"},
    "MultivariateNormal": {"loc": "vector", "matrix": "matrix"},
}
COMMON = ("Normal", "Normal", "Normal", "Poisson", "MultivariateNormal", "Bernoulli", "Exponential")
VECTORS = ("OneHotCategorical", "Multinomial", "MultivariateNormal")
LINEAR = ("Normal", "Laplace", "StudentT", "Poisson", "Bernoulli", "Binomial")


@dataclass(frozen=True)
class Index:
    """How a table of parameters is read at a site: its sizes, and the text between brackets."""

    sizes: tuple[int, ...] = ()
    text: str = ""

    def of(self, table: str) -> str:
        return f"{table}[{self.text}]" if self.sizes else table


@dataclass(frozen=True)
class Site:
    """A site to be given a distribution."""

    source: Source
    name: str
    index: Index
    event: tuple[int, ...]
    rows: tuple[int, ...] | None  # of covariates; None where there can be none

    def table(
        self,
        suffix: str,
        kind: str,
        event: tuple[int, ...] | None = None,
        /,
        centre: float = 0.0,
        size: float = 1.0,
        tied: float = 0.2,
    ) -> str:
        """A parameter for each value of the index, or (with a probability) one for all."""
        event = self.event if event is None else event
        name = f"{self.name}_{suffix}"
        if self.index.sizes and self.source.chance(tied):
            self.source.features.add("tied")
            return self.source.parameter(name, kind, (), event, centre, size)
        table = self.source.parameter(name, kind, self.index.sizes, event, centre, size)
        return self.index.of(table)


def emission(
    source: Source,
    name: str,
    index: Index,
    rows: tuple[int, ...] | None,
    family: str | None = None,
    columns: int | None = None,
) -> tuple[str, tuple[int, ...]]:
    """A random distribution for one site: its text, and the shape of its events.

    Args:
        source: Where parameters and inputs are declared.
        name: The site, whose name begins those of its parameters.
        index: How tables of parameters are read.
        rows: Shape of the inputs that a row of data may have; None for no inputs.
        family: A name of ``FAMILIES``, drawn if it is None.
        columns: The size of the event of a family of numbers: 0 for none; drawn if it is None.
    """
    family = family or (
        source.pick(*COMMON) if source.chance(0.55) else source.pick(*sorted(FAMILIES))
    )
    if columns is None:
        columns = source.pick(0, 0, 2, 3)
    event = (columns,) if columns and family not in VECTORS else ()
    site = Site(source, name, index, event, None if event else rows)
    source.features.add(family)
    if family == "Normal" and index.sizes and not event and source.chance(0.12):
        arguments = _normal_gamma(site)
    else:
        arguments = {key: _argument(site, family, role) for key, role in FAMILIES[family].items()}
    own: tuple[int, ...] = ()
    if family in ("Categorical", "OneHotCategorical", "Multinomial"):
        levels = source.pick(2, 3)
        own = () if family == "Categorical" else (levels,)
        arguments = {"probs": site.table("probs", "simplex", (*event, levels), tied=0.0)}
        if source.chance(0.15):
            logits = site.table("logits", "real", (*event, levels), size=0.5, tied=0.0)
            arguments = {"logits": logits}
        if family == "Multinomial":
            arguments = {"total_count": "7", **arguments}
    elif family == "MultivariateNormal":
        own = (source.pick(2, 2, 3),)
        arguments = _gaussian(site, own[0])
    elif "probs" in arguments and arguments["probs"].startswith("logits="):
        arguments["logits"] = arguments.pop("probs").removeprefix("logits=")
    text = f"dist.{family}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
    if event:
        known = not any(argument.startswith(f"{name}_") for argument in arguments.values())
        text += f".expand([{columns}]).to_event(1)" if known else ".to_event(1)"
    if family not in VECTORS:
        source.flexible.add(name)
    return text, (*event, *own)


def _argument(site: Site, family: str, role: str) -> str:
    source, unit = site.source, site.source.unit
    match role:
        case "location":
            return _location(site, source.shift * unit, unit, family in LINEAR)
        case "log location":
            return site.table("loc", "real", centre=math.log(unit), size=0.5)
        case "angle":
            return site.table("loc", "real", size=0.3)
        case "scale":
            return _scale(site, unit)
        case "rate":
            return _times(site, site.table("rate", "positive", size=1.0 / unit))
        case "rate of counts":
            return site.table("rate", "positive", size=0.5)
        case "count":
            return _count(site, family)
        case "probability":
            return _probability(site, family)
        case "freedom":
            return (
                source.pick("4.0", "3.0")
                if source.chance(0.6)
                else site.table("df", "bounded", size=4.0)
            )
        case "total":
            return source.pick("5", "3", "torch.tensor(8.0)")
        case "shape" | "bounded shape":
            if source.chance(0.3):
                return source.pick("2.0", "1.5", "3.0")
            # Where a density has a limit as its shape grows, Pyro's own value drowns in rounding.
            kind = "positive" if role == "shape" else "bounded"
            return site.table("shape_" + str(len(source.truth)), kind, size=2.0, tied=0.4)
    return ""


def _normal_gamma(site: Site) -> dict[str, str]:
    """Locations whose prior depends on the precisions."""
    source, unit, sizes = site.source, site.source.unit, site.index.sizes
    source.features.add("Normal-Gamma")
    precision, loc = f"{site.name}_precision", f"{site.name}_loc"
    gamma = f"dist.Gamma(3.0, 2.0 * {unit**2!r}).expand({list(sizes)}).to_event({len(sizes)})"
    source.declare(f"{precision} = pyro.sample({precision!r}, {gamma})")
    normal = f"dist.Normal({source.shift * unit!r}, (0.2 * {precision}).rsqrt())"
    source.declare(f"{loc} = pyro.sample({loc!r}, {normal}.to_event({len(sizes)}))")
    source.truth[precision] = unit**-2 * (0.5 * source.normal(*sizes)).exp()
    source.truth[loc] = unit * (source.shift + 2.0 * source.normal(*sizes))
    scale = f"{site.index.of(precision)}.rsqrt()"
    return {"loc": site.index.of(loc), "scale": scale}


def _location(site: Site, centre: float, size: float, linear: bool) -> str:
    source = site.source
    if site.rows is not None and linear and source.chance(0.3):
        return _line(site, centre, size, (0.0, 0.0, 5.0, 2e3))
    single = len(site.index.sizes) == 1 and not site.event
    if single and site.index.text.isidentifier() and source.chance(0.12):
        source.features.add("ordered")
        name = source.parameter(f"{site.name}_loc", "ordered", (), site.index.sizes, centre, size)
        return site.index.of(name)
    table = site.table("loc", "real", centre=centre, size=size, tied=0.1)
    if site.rows is not None and source.chance(0.1):
        source.features.add("offset")
        offset = source.given(f"{site.name}_offset", 3.0 * size * source.normal(*site.rows))
        return f"{table} + {offset}"
    return table


def _line(site: Site, centre: float, size: float, shifts: tuple[float, ...] = (0.0,)) -> str:
    """A location that is linear in covariates, whose own unit and origin vary."""
    source = site.source
    assert site.rows is not None
    source.features.add("regression")
    x_unit = source.pick(1.0, 1.0, 1e-6, 1e4, 1e9)
    x_shift = source.pick(*shifts)
    if source.chance(0.5):
        x = source.given(f"{site.name}_x", x_unit * (x_shift + source.normal(*site.rows)))
        slope = site.table("slope", "real", (), size=size / x_unit)
        intercept = site.table("intercept", "real", (), centre=centre, size=size)
        return f"{intercept} + {slope} * {x}"
    columns = source.pick(2, 3)
    values = x_unit * (x_shift + source.normal(*site.rows, columns))
    if source.chance(0.6):
        values[..., 0] = 1.0
    x = source.given(f"{site.name}_x", values)
    tied = 1.0 if len(site.rows) == 1 and source.chance(0.2) else 0.0
    beta = site.table("beta", "real", (columns,), size=size / x_unit, tied=tied)
    if tied and site.index.sizes:
        return f"{site.table('loc', 'real', (), centre=centre, size=size)} + {x} @ {beta}"
    return f"({x} * {beta}).sum(-1)"


def _scale(site: Site, size: float) -> str:
    source = site.source
    way = source.pick("scale", "scale", "variance", "precision", "log", "known", "known rows")
    if way == "known rows" and site.rows is None:
        way = "scale"
    match way:
        case "scale":
            return _times(site, site.table("scale", "positive", size=size, tied=0.4))
        case "variance":
            return site.table("variance", "positive", size=size**2, tied=0.4) + ".sqrt()"
        case "precision":
            return site.table("precision", "positive", size=size**-2, tied=0.4) + ".rsqrt()"
        case "log":
            table = site.table("log_scale", "real", centre=math.log(size), size=0.3, tied=0.4)
            return f"{table}.exp()"
        case "known":
            return repr(source.pick(1.0, 0.5) * size)
    assert site.rows is not None
    source.features.add("known scales")
    return source.given(f"{site.name}_scales", size * (0.4 * source.normal(*site.rows)).exp())


def _times(site: Site, text: str) -> str:
    """The argument, at times multiplied by known numbers."""
    if site.rows is None or not site.source.chance(0.15):
        return text
    site.source.features.add("known factor")
    name = f"{site.name}_factor{len(site.source.inputs)}"
    return f"{text} * {site.source.given(name, (0.5 * site.source.normal(*site.rows)).exp())}"


def _count(site: Site, family: str) -> str:
    source = site.source
    if site.rows is not None and family in LINEAR and source.chance(0.2):
        return f"({_line(site, 1.0, 0.3)}).exp()"
    size = source.pick(0.5, 3.0, 3.0, 20.0, 1e3, 1e6)
    return _times(site, site.table("rate", "positive", size=size, tied=0.1))


def _probability(site: Site, family: str) -> str:
    source = site.source
    if family in LINEAR and source.chance(0.25):
        if site.rows is not None and source.chance(0.5):
            return f"logits={_line(site, 0.0, 0.7)}"
        return f"logits={site.table('logits', 'real', size=0.7, tied=0.0)}"
    return site.table("probs", "unit", tied=0.1)


def _gaussian(site: Site, columns: int) -> dict[str, str]:
    source, unit = site.source, site.source.unit
    centre = source.shift * unit
    loc = site.table("loc", "real", (columns,), centre=centre, size=unit, tied=0.1)
    if site.rows is not None and source.chance(0.1):
        source.features.add("known matrix")
        factor = torch.tril(source.normal(columns, columns))
        known = unit**2 * (factor @ factor.mT + torch.eye(columns, dtype=torch.float64))
        return {"loc": loc, "covariance_matrix": literal(known)}
    key, kind, size = source.pick(
        ("precision_matrix", "precision", unit**-2),
        ("covariance_matrix", "covariance", unit**2),
        ("scale_tril", "tril", unit**2),
    )
    return {"loc": loc, key: site.table("matrix", kind, (columns, columns), size=size, tied=0.4)}
