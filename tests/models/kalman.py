"""The log likelihood of a state space by a Kalman filter of its own."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["kalman", "real"]

Array = np.ndarray[Any, Any]


def kalman(
    y: Array, mean: Array, spread: Array, move: Array, noise: Array, look: Array, error: Array
) -> float:
    """Log likelihood of rows (T, D) with gaps, the first state's distribution being given."""
    total = 0.0
    for t, row in enumerate(y):
        if t:
            mean, spread = move @ mean, move @ spread @ move.T + noise
        shown = ~np.isnan(row)
        if not shown.any():
            continue
        H, R = look[shown], error[np.ix_(shown, shown)]
        S = H @ spread @ H.T + R
        gap = row[shown] - H @ mean
        total -= 0.5 * (len(gap) * np.log(2 * np.pi) + np.linalg.slogdet(S)[1])
        total -= 0.5 * float(gap @ np.linalg.solve(S, gap))
        gain = spread @ H.T @ np.linalg.inv(S)
        mean, spread = mean + gain @ gap, spread - gain @ H @ spread
    return float(total)


def real(**values: Any) -> dict[str, Tensor]:
    return {name: torch.as_tensor(v, dtype=torch.float64) for name, v in values.items()}
