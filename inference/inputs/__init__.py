"""What a user passes in, made ready: converted, checked, sheltered.

In: the arguments of a model, tables and formulas among them, the options of ``EM``, ``SVI`` and
``select``, files of tables. Out: float64 tensors; one sentence about each mistake, before work
begins; and for the time of a call the global state (dtype, seed, threads) that Pyro and torch need.
What goes out while work is done are progress bars.

Arguments go through ``frames.py`` (columns by name, words, formulas; data frames come out), then
``arguments.py`` (tensors come out). To add an option: a line in a table of ``options.py``. To add a
kind of argument: ``arguments.py``; to add an argument that formulas fill: ``formulas.py``.
"""
