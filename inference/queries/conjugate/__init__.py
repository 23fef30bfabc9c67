"""Answers about latents with conjugate priors: their posterior, and missing data below them.

In: a plan with such latents, at given parameters. Out: distributions, means and draws.
"""
