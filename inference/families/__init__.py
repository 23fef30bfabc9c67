"""Exponential families and conjugate priors: the mathematics.

In: a distribution and the maps of its arguments. Out: its form, ``<eta, T(x)> + h(x)``, with the
parameters of its family; and what a conjugate prior adds to expected statistics.

Where arguments are computed at each node of a latent, cell by cell, ``by_cell.py`` says which
family a distribution is of.

To add a family: one file (or one function in a file that has its kind of parameter) with a
recogniser under ``@exponential_form(dist.X)``; name a new file in ``recognition.py``. To add a
conjugate prior: one function under ``@register_prior`` in ``conjugacy.py``. To add a kind of
parameter: one class in ``kinds.py``; a link, one in ``links.py``.
"""
