"""Scripted policies for 2048: each reads the board and writes a reply."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

from environments.game2048.game import DIRECTIONS, legal_directions, move
from environments.game2048.replies import as_reply

if TYPE_CHECKING:
    from environments.game2048.env import Game2048
    from environments.protocol import ScriptedPolicy

CORNER_ORDER = ("left", "down", "right", "up")


def random(env: Game2048, rng: Random) -> str:
    """Move in any of the four directions."""
    return as_reply(rng.choice(DIRECTIONS))


def random_legal(env: Game2048, rng: Random) -> str:
    """Move in any direction that changes the board."""
    return as_reply(rng.choice(legal_directions(env.board)))


def corner_order(env: Game2048, rng: Random) -> str:
    """Move in the first of left, down, right and up that changes the board."""
    return as_reply(next(d for d in CORNER_ORDER if move(env.board, d)[2]))


def merge_greedy(env: Game2048, rng: Random) -> str:
    """Move in the direction that merges the most tiles; choose among the best at random."""
    merges: dict[str, int] = {}
    for direction in DIRECTIONS:
        board, _, changed = move(env.board, direction)
        if changed:
            merges[direction] = sum(row.count(0) for row in board)  # a merge frees a cell
    best = max(merges.values())
    return as_reply(rng.choice([d for d, count in merges.items() if count == best]))


BASELINES: Mapping[str, ScriptedPolicy] = {
    "random": random,
    "random_legal": random_legal,
    "corner_order": corner_order,
    "merge_greedy": merge_greedy,
}
