"""Finds the map behind an argument, by comparing a few runs at random parameters.

One file for each kind of map: entries of parameters (``arguments.py``), affine (``affine.py``),
products of powers (``sticks.py``), sums of rates (``superposition.py``).
"""
