"""One loop; stopping, acceleration and restarts wrap the EM map and know no model.

In: a ``Plan`` and starting parameters. Out: a ``Run``. ``loop.py`` is E-step, M-step, check;
``convergence.py`` has the stopping rule, ``judgement.py`` what may be said of the end.

To change when to stop: ``Monitor`` in ``convergence.py``. To add a scheme of acceleration: a file
in ``acceleration`` with its name in ``schemes.py``.
"""
