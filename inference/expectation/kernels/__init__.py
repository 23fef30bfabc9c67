"""E-steps of special models in one sweep over the rows; nothing of size ``N K`` is stored.

``mixture.py`` takes natural parameters to expected statistics, by the sweep in torch (``sweep.py``)
or, where numba is installed and there is work enough, by its compiled loops (``compiled_sweep.py``
and ``loops.py``). ``nodes.py`` is for a latent on nodes.
"""
