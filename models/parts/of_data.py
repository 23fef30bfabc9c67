"""What a model computes of its data alone.

A model is run many times on the same data. What passes over them and depends on no parameter is an
effect of Pyro's, of the type ``"of_data"``: a handler may answer with the result of an earlier run.
Without a handler it is computed each time.
"""

from pyro.poutine.runtime import effectful

__all__ = ["of_data"]

of_data = effectful(type="of_data")
