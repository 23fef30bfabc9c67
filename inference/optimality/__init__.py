"""Whether a place is a maximum: curvature, directions of ascent, what lies at infinity.

In: an E-step and the statistics of the place. Out: a certificate (``certificate.py``), a higher
place (``higher_places.py``, ``vanishing.py``), or a sentence about an estimate that no data hold
back (``infinity.py``, ``unbounded.py``). ``iteration/judgement.py`` asks.
"""
