"""Several methods on the same data: one table and one picture."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import pandas as pd
import torch
from torch import Tensor

from ember.inference.alignment import align
from ember.inference.fit import Fit
from ember.inference.inputs.shelter import sheltered
from ember.inference.marginals import Marginals, marginals_of
from ember.inference.plan.building import build_plan
from ember.inference.reading.sequences import base_name
from ember.inference.reports.summary import entry_values, named_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Method", "compare"]


WIDTH = 110
SHOWN = 40  # parameter entries in the printed report; the table holds all of them
MEASURES = ("log likelihood", "log posterior", "iterations", "passes", "seconds")


class Method(Protocol):
    """What can be compared: ``EM``, ``SVI``, and anything alike."""

    @property
    def name(self) -> str:
        """What tables call the method."""
        ...

    def fit(self, *args: object, **kwargs: object) -> Fit:
        """Fits the model to its arguments."""
        ...


@dataclass
class Comparison:
    """The fits of several methods, side by side.

    Attributes:
        fits: Name of the method to its fit; methods that failed are missing.
        errors: Name of the method to the message of the error that it raised.
        params: Name of the method to its estimates, states numbered as in the first fit.
        table: A row for each method, in the order given: log likelihood, log posterior,
            iterations, passes over the data, seconds, whether it converged, the reason why it
            stopped, then every parameter entry.

    In ``table`` the log posterior is the log likelihood plus the model's log prior density at the
    estimates, for *every* method: also for those that maximise the likelihood and so leave the
    prior aside. For a fit whose guide is a distribution both columns are taken at its median.
    Only so are the rows comparable with each other; ``fits[name].log_posterior`` keeps each
    method's own objective. Both have all latents integrated out, those too that a guide covers;
    the bound that an SVI fit climbed is ``fits[name].history``.
    """

    fits: dict[str, Fit]
    errors: dict[str, str]
    params: dict[str, dict[str, Tensor]]
    table: pd.DataFrame
    columns: tuple[str, ...] | None = field(default=None, repr=False)

    def plot(self) -> "Figure":
        """One picture of all fits: data with components where they can be drawn, and progress."""
        from ember.inference.reports.drawing.comparison import draw_fits

        with sheltered(data=next(iter(self.fits.values()))._data):
            return draw_fits(self.fits, self.params, self.columns)

    def marginals(self) -> Marginals:
        """How sure each method is: estimates and standard deviations of every entry, and draws.

        Of a point they are those of the normal approximation by its observed information, of other
        methods those of their posterior. ``.table`` holds them side by side, with the log posterior
        and the seconds, and of chains ``r_hat`` and the effective sample size; ``.plot()`` draws
        the marginal densities.
        """
        known = self.table["log posterior"].to_dict()
        log_posteriors = {name: float(known[name]) for name in self.fits}
        return marginals_of(self.fits, self.params, log_posteriors)

    def __str__(self) -> str:
        blocks = [_measures(self.table), _estimates(self.table, *next(iter(self.fits.items())))]
        blocks.append("Log posterior: log likelihood + log prior density, for every method.")
        blocks += _covered(self.fits)
        notes = [f"{name} failed: {message}" for name, message in self.errors.items()]
        notes += [fit.warning for fit in self.fits.values() if fit.warning]
        return "\n".join([*blocks, *notes])

    __repr__ = __str__


def compare(methods: Sequence[Method], *args: object, **kwargs: object) -> Comparison:
    """Fits the same data by several methods and sets the results side by side.

    The states of latent sites are renumbered to match the first fit. A method that fails does
    not stop the others: its error takes the place of its results. A method shows its progress
    if it was made with ``progress=True``.

    Args:
        methods: Such as ``[EM(model), SVI(model, guide="normal")]``.
        *args: The model's own arguments.
        **kwargs: The model's own keyword arguments.

    Raises:
        TypeError: If ``methods`` is no list of methods.
        ValueError: If every method fails: the error of the first one.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ember.inference import EM
        >>> def coins(heads):
        ...     weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(2)))
        ...     with pyro.plate("coins", 2):
        ...         p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     with pyro.plate("rows", len(heads)):
        ...         coin = pyro.sample("coin", dist.Categorical(weights))
        ...         pyro.sample("heads", dist.Binomial(10, p[coin]), obs=heads)
        >>> heads = torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0])
        >>> compared = compare([EM(coins, seed=0), EM(coins, objective="mle", seed=0)], heads)
        >>> list(compared.table.index)
        ['EM (MAP)', 'EM (MLE)']
    """
    named = _named(methods)
    fits: dict[str, Fit] = {}
    failures: dict[str, Exception] = {}
    for name, method in named.items():
        try:
            fits[name] = method.fit(*args, **kwargs)
        except Exception as error:
            # Whatever goes wrong in one method, the results of the others are worth keeping.
            failures[name] = error
    if not fits:
        raise next(iter(failures.values()))
    reference = next(iter(fits.values()))
    with sheltered(data=reference._data):
        params = {
            name: fit.params if fit is reference else align(reference, fit)
            for name, fit in fits.items()
        }
        rows = {
            name: _row(fits[name], params[name]) if name in fits else _failed(failures[name])
            for name in named
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "method"
    for column in ("iterations", "passes"):
        table[column] = table[column].astype("Int64")
    errors = {name: str(error) or type(error).__name__ for name, error in failures.items()}
    return Comparison(fits, errors, params, table, _column_names(args, kwargs))


def _covered(fits: Mapping[str, Fit]) -> list[str]:
    """What the likelihoods are where a guide covers latents that others integrate out."""
    covering = {name: fit.guide.covered for name, fit in fits.items() if fit.guide is not None}
    latents = dict.fromkeys(latent for covered in covering.values() for latent in covered)
    if not latents:
        return []
    methods = ", ".join(name for name, covered in covering.items() if covered)
    folded = dict.fromkeys(base_name(n) or n for n in latents) if len(latents) > 3 else latents
    shown = ", ".join(f"'{latent}'" for latent in folded)
    text = (
        "Log likelihood: continuous latents integrated out, for every method. The guide of "
        f"{methods} covers {shown}, so what it climbed is a bound that lies below."
    )
    return [textwrap.fill(text, WIDTH)]


def _named(methods: object) -> dict[str, Method]:
    """The methods by name; a name that occurs again gets a number."""
    if isinstance(methods, (str, Mapping)) or not isinstance(methods, Sequence):
        raise TypeError("methods must be a list of methods, for example [EM(model), SVI(model)].")
    if not methods:
        raise ValueError("methods is empty; give at least one, for example [EM(model)].")
    named: dict[str, Method] = {}
    for method in methods:
        if isinstance(method, type) or not (hasattr(method, "fit") and hasattr(method, "name")):
            raise TypeError(
                f"{method!r} is no method; pass instances such as EM(model) or SVI(model)."
            )
        name, count = method.name, 2
        while name in named:
            name, count = f"{method.name} {count}", count + 1
        named[name] = method
    return named


def _row(fit: Fit, params: Mapping[str, Tensor]) -> dict[str, object]:
    return {
        "log likelihood": fit.log_likelihood,
        "log posterior": fit.log_likelihood + _log_prior(fit),
        "iterations": fit.iterations,
        "passes": fit.evaluations,
        "seconds": fit.seconds,
        "converged": fit.converged,
        "stop reason": fit.stop_reason,
        **entry_values(params),
    }


def _failed(error: Exception) -> dict[str, object]:
    reason = f"failed: {error or type(error).__name__}"
    return {**dict.fromkeys(MEASURES), "converged": False, "stop reason": reason}


def _log_prior(fit: Fit) -> float:
    """The model's log prior density at the estimates, whatever the method maximised.

    It is the density of the sites as the model declares them.
    """
    plan = fit.plan
    if plan.objective != "map" or plan.unconstrained:
        structure, misread = plan.structure, plan.opaque.misread
        plan = build_plan(
            structure.model, structure.arguments, "map", structure.wishes, misread=misread
        )
    with torch.no_grad():
        return float(plan.prior.log_prob(fit.params))


def _column_names(args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[str, ...] | None:
    """Names of the columns of the first table among the arguments."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, pd.DataFrame):
            return tuple(map(str, value.columns))
        if isinstance(value, pd.Series):
            return (str(value.name),)
    return None


def _measures(table: pd.DataFrame) -> str:
    """The first block of the report: how well, how long, and how it ended."""
    shown = table[list(MEASURES)].copy()
    shown["ended"] = [str(reason).split(":")[0] for reason in table["stop reason"]]
    formats: dict[str, Callable[[float], str]] = {
        "log likelihood": "{:.4f}".format,
        "log posterior": "{:.4f}".format,
        "seconds": "{:.3f}".format,
    }
    shown.index.name = None
    for column in shown:
        shown[column] = [_shown(value, formats.get(str(column), str)) for value in shown[column]]
    return shown.to_string(line_width=WIDTH) + "\n"


def _shown(value: float, show: Callable[[float], str]) -> str:
    return "-" if pd.isna(value) else str(show(value))


def _estimates(table: pd.DataFrame, reference: str, fit: Fit) -> str:
    """The second block: a line for each parameter entry, a column for each method."""
    fitted = table.dropna(subset=["log likelihood"])
    entries = fitted.drop(columns=[*MEASURES, "converged", "stop reason"]).T
    entries = entries.rename(index=named_labels(fit.params, fit.axes))
    more = len(entries) - SHOWN
    text = entries.head(SHOWN).to_string(float_format="{:.6g}".format, na_rep="-", line_width=WIDTH)
    text = text.replace("method", "      ", 1)
    title = "Estimates" + (f", states numbered as in {reference}" if len(fitted) > 1 else "")
    rest = f"\n... and {more} more entries, in .table" if more > 0 else ""
    return f"{title}\n{text}{rest}\n"
