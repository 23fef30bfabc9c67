"""The M-step: which update each parameter has, and the update.

In: ``Statistics``. Out: parameters that raise the expected log joint. ``updates.py`` chooses once
for a plan: in closed form (``closed_form.py``, ``least_squares.py``) or numerical
(``numerical.py``).

To add a kind of parameter with a closed form: ``families/kinds.py``.
"""
