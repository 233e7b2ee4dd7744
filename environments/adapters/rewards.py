"""Rewards of other libraries within bounds."""

from __future__ import annotations

import math
from numbers import Real


def bounded(reward: object, low: float, high: float) -> float:
    """The reward, no lower and no higher; 0 (or the nearest bound) for what is no number."""
    value = float(reward) if isinstance(reward, Real) else 0.0
    return min(max(0.0 if math.isnan(value) else value, low), high)
