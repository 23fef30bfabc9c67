"""The E-step: log evidence, and its gradient by all that it depends on.

In: a ``Plan`` and parameters. Out: ``Statistics``, posteriors of latents. ``LogEvidence`` decides
once for a plan how its latents are summed out: by a kernel (``kernels``) or an elimination order
(``elimination.py``) with the steps of chains in it (``chains``).

To sum out latents another way: a kernel with the signature of ``MixtureKernel`` and a function that
says for which plans it is right, asked in ``LogEvidence.__init__``.
"""
