"""Whether the values of latents find room in the dims of tensors, each known by its latent."""

from collections.abc import Collection, Iterable

from ember.inference.reading.checks.sites import batch_shape, has_unknown_dims
from ember.inference.reading.trace import Trace

__all__ = ["check_room", "check_scope"]


MOST_DIMS = 62  # torch has 64, of which a vector of probabilities takes one


def check_room(latent: Collection[str], steps: Collection[str], nesting: int) -> None:
    """Refuses more latent sites than there are dims; those inside ``pyro.markov`` share theirs.

    Raises:
        ValueError: If there are too many.
    """
    alone = [name for name in latent if name not in steps]
    if len(alone) + nesting > MOST_DIMS:
        raise ValueError(
            f"the model has {len(alone)} latent sites outside pyro.markov ('{alone[0]}', "
            f"'{alone[1]}', ...), each of which takes a dim of its own, and tensors have 64 at "
            "most: write a chain as 'for t in pyro.markov(range(T))', and independent rows in one "
            "pyro.plate."
        )


def check_scope(trace: Trace, names: Iterable[str], nesting: int) -> None:
    """Refuses a site that reads a latent which ``pyro.markov`` has let go of.

    Raises:
        ValueError: Naming the site.
    """
    for name in names:
        node = trace.nodes[name]
        if has_unknown_dims(node, batch_shape(name, node), nesting):
            raise ValueError(
                f"site '{name}' depends on a latent of a pyro.markov loop that it is outside of, "
                "or that lies further back than the loop's history: move the site into the loop "
                "(a site after the last step belongs to that step), or pass history=2 (or more) "
                "to pyro.markov."
            )
