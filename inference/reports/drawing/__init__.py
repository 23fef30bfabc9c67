"""Pictures of a fit: the data with what was fitted to them, and how fast fits climbed.

To add a kind of panel: a file here, and its place in ``figure.py``.
"""
