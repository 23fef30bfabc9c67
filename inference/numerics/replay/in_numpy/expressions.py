"""All of them."""

from ember.inference.numerics.replay.in_numpy import arithmetic, layout, matrices
from ember.inference.numerics.replay.in_numpy.operands import Expression

__all__ = ["EXPRESSIONS", "HELPERS"]


EXPRESSIONS: dict[str, Expression] = {
    **arithmetic.EXPRESSIONS,
    **layout.EXPRESSIONS,
    **matrices.EXPRESSIONS,
}
HELPERS: dict[str, object] = {
    **arithmetic.HELPERS,
    **layout.HELPERS,
    **matrices.HELPERS,
}
