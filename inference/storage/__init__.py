"""Fits in files: what they hold, how it is written, and how a fit comes back.

In: a fit. Out: one file in the safetensors format, and the same fit from it and its model. Nothing
in a file is ever executed: it holds tensors and JSON. ``encoding.py`` turns values into those two,
``sealed_file.py`` writes and checks files, ``fit_file.py`` says what a fit consists of:
``arguments.py`` what the model was called with, ``plan_record.py`` how the plan was read,
``guides.py`` what ``SVI`` learnt.

To store a further kind of value: ``encoding.py``. After a change of what a file means: raise
``FIT`` in ``sealed_file.py``.
"""
