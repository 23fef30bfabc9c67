"""Latents of units, with the sites that read them: one integral for each unit.

In: sites and the unit of each of their events (``reading/units``). Out: a factor whose log
probability is the log evidence of each unit at nodes (``component.py``). The log densities of the
sites at the nodes are played back from a record of what the model computes (``playback.py``), and
the nodes stand at mode and curvature (``modes.py``).
"""
