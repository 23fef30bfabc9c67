"""Functions of small tensors, written down once and then played back without torch's overhead."""
