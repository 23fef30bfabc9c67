"""Draws from the posterior of the parameters, latents integrated out.

In: a plan in unconstrained coordinates, and its mode. Out: the log posterior density and its
gradient as functions of a vector (``density.py``), a normal approximation
(``normal_approximation.py``), Markov chains (``chains.py``), their draws with states of latents
numbered alike (``labels.py``), and what is said of them (``diagnostics.py``).
"""
