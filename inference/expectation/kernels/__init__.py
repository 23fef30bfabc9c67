"""E-steps of special models in one sweep over the rows; nothing of size ``N K`` is stored."""
