"""What a tensor was computed from."""

from typing import Any

from torch import Tensor

__all__ = ["leaves_of"]


def leaves_of(*outputs: Tensor) -> set[int]:
    """The ids of the tensors that graphs start from; a gradient would tell, but cost more."""
    found = {id(output) for output in outputs if output.is_leaf}
    nodes = [output.grad_fn for output in outputs]
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        nodes += [following for following, _ in node.next_functions]
    return found
