"""Latents with conjugate priors: which sites read them, how, and what these sites become."""
