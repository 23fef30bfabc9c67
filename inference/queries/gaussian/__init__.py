"""Answers about Gaussian latents: their posterior, draws of them, and of the sites that read them.

In: a plan with components, at given parameters. Out: means, covariances and draws.
"""
