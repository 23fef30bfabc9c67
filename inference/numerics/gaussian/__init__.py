"""Gaussian latents, integrated exactly: log integrals of exponentials of quadratics, with moments.

In: the potentials of the latent entries ``z``, that is ``info`` and the values of ``precision`` on
a ``Pattern``. Out: the log of the integral of ``exp(info'z - z'Pz/2)``, whose gradient is made of
the posterior moments; means, covariances and draws. Nothing here knows of models.

``block_log_integral`` takes many small matrices at once. ``gaussian_system`` looks at a pattern and
chooses one of the algorithms, each of which is a file here: ``block_diagonal``, ``chain``,
``schur``, ``dense``, ``sparse``. To add one: a subclass of ``GaussianSystem`` and a line in
``gaussian_system``.
"""
