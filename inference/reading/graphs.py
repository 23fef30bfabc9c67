"""What a tensor was computed from."""

from torch import Tensor
from torch.autograd.graph import Node

__all__ = ["leaves_of"]


def leaves_of(*outputs: Tensor) -> set[int]:
    """The ids of the tensors that graphs start from; a gradient would tell, but cost more."""
    leaves = {id(output) for output in outputs if output.is_leaf}
    nodes = [output.grad_fn for output in outputs]
    visited: set[Node] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        nodes += [following for following, _ in node.next_functions]
    return leaves
