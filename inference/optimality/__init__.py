"""Whether a place is a maximum: curvature, directions of ascent, what lies at infinity.

In: an E-step and the statistics of the place. Out: a higher place, or a sentence about an estimate
that no data hold back. ``iteration/judgement.py`` asks.
"""
