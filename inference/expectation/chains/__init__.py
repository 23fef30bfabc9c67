"""Hidden Markov chains: forward-backward, scaled or in log space, whole or in blocks.

``evidence.py`` makes it one node of torch's graph and picks the way: compiled loops where numba is
installed and the chains are long (``compiled.py``), else tensors (``scaled.py``), and logarithms
where scaled numbers would lose a state (``log_space.py``).
"""
