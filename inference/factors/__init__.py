"""A site as a log potential with named dims, compiled.

In: a ``Site``. Out: a ``CompiledFactor``, which takes natural parameters to log probabilities; for
sites without sufficient statistics, ``OpaqueFactors`` (``second_order.py``: what pieces of data add
up of these). Sites that read the same entries of parameters are tied (``tied.py``): their
statistics are pooled.

To add a kind of factor: a class with ``dims`` and ``log_prob(eta)``, chosen in
``plan/building.py``.
"""
