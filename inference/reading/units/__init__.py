"""Continuous latents of units, read by index as in ``u[group]``: who they are, and who reads them.

In: a structure, and runs of the model. Out: latents with rules (``latents.py``), and for each site
that reads some the unit of each of its events (``linking.py``). Pyro cannot enumerate such a
latent, for the index would meet the dim of its nodes; so it is an input of what the model computes,
and has a value in each run.
"""
