"""One loop; stopping, acceleration and restarts wrap the EM map and know no model.

In: a ``Plan`` and starting parameters. Out: a ``Run``. ``loop.py`` is E-step, M-step, check; on the
way a ``Trajectory`` grows, whoever takes the steps. ``convergence.py`` has the stopping rules,
``judgement.py`` what may be said of the end, ``diagnosis.py`` why a step went wrong.

To change when to stop: a stopping rule is a function of the trajectory, an argument of ``Loop``;
``Monitor`` in ``convergence.py`` is the one that EM gives it. To add a scheme of acceleration: a
file in ``acceleration`` with ``init`` and ``step``, and its name in ``schemes.py``. To watch a run,
or to save it on the way: ``on_step``, an argument of ``Loop`` too, is shown the trajectory after
each step.
"""
