"""Gaussian latents: the factors that they share, as one quadratic function of them all.

In: sites with slots (``reading/gaussian``). Out: one factor for all that is connected, its latents
integrated out, whose log probability is the log evidence of its sites.
"""
