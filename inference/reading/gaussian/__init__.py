"""Gaussian latents: which sites they are, and how the locations of other sites read them."""
