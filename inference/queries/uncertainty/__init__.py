"""How sure estimates are: observed information, standard errors, intervals, draws; no bootstrap.

In: the data (``passes.py``: a plan in memory, or pieces) and estimates. Out: an ``Uncertainty``,
which ``Fit`` makes once. The order of reading is ``observed_information.py``,
``identification.py``, ``entries.py`` (the delta method), ``intervals.py``, ``sandwich.py``, and
``uncertainty.py``, which puts them together; ``drawn.py`` answers the same questions from draws.
"""
