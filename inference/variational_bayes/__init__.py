"""Variational Bayes on the plan of EM: distributions of the parameters in the place of points.

In: a plan. Out: another plan, whose parameters are those of the posteriors (``posterior_plan.py``),
and its M-step (``posterior_step.py``). The E-step, the loop and its accelerators are those of EM.
To add a kind of posterior, write a class as in ``posteriors.py`` and name it in ``choice.py``.
"""
