"""How numpy says what torch's operations do.

An operation on a handful of numbers takes torch some microseconds, nearly all of them on the way to
the arithmetic; numpy takes a fraction of one. For each operation there is an expression here, made
of the expressions of its operands. Where there is none torch itself is called, so the list holds
what occurs often and need not be complete; what changes tensors in place is torch's as well. An
expression gives what torch gives, up to rounding, or raises ``NotImplementedError`` where it would
not.
"""
