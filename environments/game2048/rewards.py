"""The rewards of 2048: constants, and the reward of an episode from its last board."""

from __future__ import annotations

from math import log2

WIN_REWARD = 2.0
INVALID_REWARD = -1.0


def episode_reward(*, max_value: int, board_value: int, win_value: int) -> float:
    """Return 2 for a win; otherwise 0 to just over 1, by the largest tile and the sum of all."""
    if max_value >= win_value:
        return WIN_REWARD
    progress = (log2(max_value) - 1) / (log2(win_value) - 1)
    return progress + 0.2 * (log2(board_value) - 1) / 10
