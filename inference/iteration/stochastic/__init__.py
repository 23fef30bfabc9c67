"""Estimates from draws of latents: stochastic approximation, then a Newton step on many draws.

In: a plan with latents of units that ask for Monte Carlo. Out: a ``Run``. ``chains.py`` draws,
``saem.py`` approximates, ``polish.py`` makes the last steps and knows their Monte Carlo error.
"""
