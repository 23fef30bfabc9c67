"""Where the loop starts: responsibilities, then one M-step.

In: a ``Plan`` and the kind of start. Out: parameters. Clusters of the data below each latent
(``features.py``, ``clustering.py``) become responsibilities (``responsibilities.py``).

To add a kind of start: a branch in ``starting_params.py``, and its name in ``inputs/options.py``.
"""
