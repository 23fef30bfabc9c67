"""Loops of ``pyro.markov``: found, and stacked into one site with a dim of steps."""
