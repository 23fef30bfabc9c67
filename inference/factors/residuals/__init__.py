"""Sites by their residuals, for where sufficient statistics would lose digits.

``choice.py`` says which and when; ``normal.py`` has the equations.
"""
