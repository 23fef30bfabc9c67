"""Whether a model can be read: each failure is one sentence with its remedy."""
