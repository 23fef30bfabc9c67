"""Runs the Pyro model a few times and says what it is.

In: a model, its arguments. Out: a ``Structure`` (the role of every site, a way to run the model
again), and for each site a ``Site``: its value, dims by name, and the maps of its arguments.
Nothing here is needed once the plan is made, but for sites that only the model can evaluate.
``reader.py`` runs, assigns roles and checks; ``trace.py`` says what a run holds. ``probes.py`` runs
the model at random parameters, and ``site_reading.py`` makes of these runs what each site is.

Gaussian latents are read in ``gaussian``, those with conjugate priors in ``conjugate``. Those on
nodes are named in ``nodes.py``; what is computed from them is recorded by ``computed.py``.

To add a check of models: ``checks``. To find another kind of argument: ``matching``. The rule by
which a site is observed, latent or a parameter: ``roles.py``.
"""
