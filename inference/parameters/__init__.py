"""What a parameter is, and which of its entries feed which argument of a distribution.

In: constrained tensors by site name. Out: arguments (*gather*), and the way back for statistics
(*scatter*); one vector of free reals (``coordinates.py``).

To add a map from parameters to arguments: a record here, with ``sources``, ``is_constant`` and
``evaluate(params)``, and a search that finds it in ``reading/matching``.
"""
