"""Latents with conjugate priors: each with the sites that read it as one factor.

In: sites with a slot (``reading/conjugate``). Out: a factor whose log probability is the log
evidence of the sites, the latent integrated out in closed form.
"""
