"""Values that follow from an immutable object alone, made when they are first needed."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, Self, TypeVar, cast

__all__ = ["Memo"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Memo:
    """Keeps what was made from it; a copy with other fields starts with nothing."""

    _made: dict[Hashable, object] = field(init=False, repr=False, default_factory=dict)

    def once(self, make: Callable[Concatenate[Self, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``make(self, *args)``, made at the first call and then kept; ``args`` are hashable."""
        key = (make, *args)
        if key not in self._made:
            self._made[key] = make(self, *args, **kwargs)
        return cast(T, self._made[key])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_made": {}}
