"""What follows from estimates: latents, predictions, draws, forecasts, missing entries, criteria.

In: a ``Plan`` (of the data of the fit, or of new ones) and parameters. Out: what ``Fit``'s methods
return. A query is a function of these two; to add one, add a file and a method of ``Fit``.
"""
