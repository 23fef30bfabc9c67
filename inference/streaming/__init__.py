"""Data in pieces, one of which is in memory at a time: what ``EM.fit_batches`` and others run on.

In: a collection of pieces that can be read again (``inputs/chunks.py``). Statistics are sums over
data, so those of the pieces add up to those of the whole: rows stay where they are, statistics
travel. ``survey.py`` reads everything once, for what depends on all rows; ``adding.py`` asks
whether rows are independent, ``nodes.py`` whether nodes are enough; ``stream.py`` is an E-step over
the pieces (``pieces.py``), which adds up their statistics (``parts.py``), here, in workers
(``workers.py``) or in several processes (``ranks.py``, ``gathering.py``); ``steps.py`` is EM's two
steps on it, ``fitting.py`` the loop, with checkpoints (``checkpoints.py``); ``online.py`` steps
before a pass has ended. Out: a run whose plan knows the model and the way to the data
(``passes.py``), but no rows.
"""
