"""The schemes of acceleration by the names that a user gives them."""

from typing import Any

from ember.inference.iteration.acceleration.alternating import Alternating
from ember.inference.iteration.acceleration.anderson import Anderson
from ember.inference.iteration.acceleration.em_map import Scheme
from ember.inference.iteration.acceleration.lbfgs import Lbfgs
from ember.inference.iteration.acceleration.plain import Plain
from ember.inference.iteration.acceleration.squarem import Squarem

__all__ = ["SCHEMES"]


SCHEMES: dict[str | None, Scheme[Any]] = {
    None: Plain(),
    "auto": Alternating((Squarem(), Lbfgs())),
    "squarem": Squarem(),
    "anderson": Anderson(),
    "lbfgs": Lbfgs(),
}
