"""Errors that a user's model raises, told in one sentence with a remedy."""

import contextlib
import traceback
from collections.abc import Iterator

from ember.inference.inputs.arguments import Model

__all__ = [
    "ROW_BY_ROW",
    "enumeration_errors",
    "plain_errors",
    "tidy_errors",
    "unevaluated",
    "unreadable",
]


ROW_BY_ROW = (
    "combine them by broadcasting (z, table[z] or torch.where), never by unsqueeze, reshape, sum "
    "or max; where rows of one plate meet, make each a site of its own (for i in pyro.plate(...))"
)


@contextlib.contextmanager
def tidy_errors(model: Model, when: str) -> Iterator[None]:
    """Reports whatever a user's model raises as one sentence."""
    try:
        yield
    except (TypeError, ValueError) as error:
        # Pyro appends the shapes of the trace; the sentence before them is the message.
        message = " ".join(_without_numbers(str(error)).split())
        line = _line_of(model, error)
        if "Shape mismatch inside plate" in message:
            message += "; reshape the data, use .to_event(...), or put the site in another plate."
        elif line and ("satisfy the constraint" in message or "expected to be" in message):
            message += (
                f" (in the model's line `{line}`); a prior or argument lies outside its domain."
            )
        elif message.startswith("Expected scale > 0"):
            message = (
                "Pyro refuses poutine.scale weights that are not positive; leave out the rows of "
                "weight zero, or give them a tiny weight."
            )
        elif message.startswith("Expected mask to be"):
            message = "poutine.mask takes truth values; convert the mask with mask.bool()."
        elif "invalid data type 'str'" in message:
            message = (
                "the model reads a column by its name, and a data frame comes to it as one tensor"
                + (f" (in the line `{line}`)" if line else "")
                + "; pass the columns by name, fit(dict(table)), or let arguments name them, "
                "fit('y', 'x', data=table)."
            )
        elif isinstance(error, TypeError) and not message.endswith("."):
            message += "; the model raised this on its arguments: check their names and types."
        raise type(error)(message) from error
    except AssertionError as error:
        raise ValueError(
            f"an assertion of the model failed{when} ({_reason(model, error)}); call it with "
            "arguments that meet it."
        ) from error
    except Exception as error:
        if "Multiple sample sites named" in str(error):
            name = str(error).split("'")[1]
            raise ValueError(
                f"the model has two sites or plates named '{name}'; give each a name of its own, "
                "and make a plate that is entered twice once: rows = pyro.plate(...), then "
                "'with rows:' each time."
            ) from error
        raise ValueError(
            f"the model cannot be run on these arguments{when} ({_reason(model, error)}); check "
            "the shapes of the data and the options passed to the model."
        ) from error


@contextlib.contextmanager
def plain_errors(model: Model) -> Iterator[None]:
    """Reports what a model finds fault with in parameters, not in what it is called with."""
    try:
        yield
    except (AssertionError, KeyError) as error:
        raise ValueError(
            f"the model fails at parameters that a fit has to try ({_reason(model, error)}); say "
            "which values are allowed by the constraint of pyro.param, or the support of a prior."
        ) from error


@contextlib.contextmanager
def enumeration_errors(model: Model) -> Iterator[None]:
    """Reports whatever goes wrong where latents take all their values and nowhere before."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and not _line_of(model, error):
            raise  # it is the reader that found something
        raise ValueError(unreadable(model, error)) from error


def unreadable(model: Model, error: Exception) -> str:
    """One sentence for a model that runs on draws of its latents, but not on one value for all."""
    return (
        "the model cannot be run with the values of its latent sites in a dim of their own "
        f"({_reason(model, error)}); {ROW_BY_ROW}."
    )


def _without_numbers(text: str) -> str:
    """A message of Pyro without the shapes of the trace, and without the values of tensors."""
    return text.split("Trace Shapes:")[0].split(", but found invalid values:")[0]


def unevaluated(model: Model, error: Exception) -> str:
    """One sentence for a start at which a model fails that runs elsewhere."""
    return (
        f"the model cannot be evaluated at the starting parameters ({_reason(model, error)}); "
        "start elsewhere with init={...}, or check that the constraint of each parameter allows "
        "only values at which the model is defined."
    )


def _reason(model: Model, error: Exception) -> str:
    """The kind of an error, its first line, and the model's line at which it arose."""
    text = str(error).strip()
    reason = f": {text.splitlines()[0].rstrip('.')}" if text else ""
    line = _line_of(model, error)
    where = f", in the line `{line}`" if line else ""
    return f"{type(error).__name__.lstrip('_')}{reason}{where}"


def _line_of(model: Model, error: BaseException) -> str:
    """The line of the model's own source at which an error arose; it shows the site's name."""
    file = getattr(getattr(model, "__code__", None), "co_filename", None)
    lines = [f.line for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return (lines[-1] or "") if lines else ""
