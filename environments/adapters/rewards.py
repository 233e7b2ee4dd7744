"""Bounds for the rewards of other libraries."""

from __future__ import annotations

import math
from numbers import Real


def bounded(reward: object, low: float, high: float) -> float:
    """Return a reward within bounds; a value that is not a number counts as 0."""
    value = float(reward) if isinstance(reward, Real) else 0.0
    return min(max(0.0 if math.isnan(value) else value, low), high)
