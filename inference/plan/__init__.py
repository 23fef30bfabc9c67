"""The model for one shape of data, as data: nothing in it depends on parameter values.

In: what reading has found. Out: a ``Plan`` (``building.py`` makes it), from which the E-step and
the M-step are compiled; and the ``Statistics`` that go from the one to the other.
"""
