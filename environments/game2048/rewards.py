"""The rewards of 2048: of a whole episode, from its last board, and of one turn."""

from __future__ import annotations

from math import log2

WIN_REWARD = 2.0
INVALID_REWARD = -1.0


def episode_reward(*, max_value: int, board_value: int, win_value: int) -> float:
    """From 0 to just over 1 by the largest tile (and a little by the sum of all); 2 for a win."""
    if max_value >= win_value:
        return WIN_REWARD
    progress = (log2(max_value) - 1) / (log2(win_value) - 1)
    return progress + 0.2 * (log2(board_value) - 1) / 10
