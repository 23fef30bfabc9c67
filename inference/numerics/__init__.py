"""Arithmetic that knows no model.

Logarithms that stay finite, exact densities of counts, designs in which regressions lose no digits,
Newton's method, a search for functions with edges, positive-definite matrices. Each file is one
subject and imports nothing of Ember but its neighbours here.
"""
