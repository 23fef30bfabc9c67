"""Log evidence and its gradient: how latent sites are integrated."""
