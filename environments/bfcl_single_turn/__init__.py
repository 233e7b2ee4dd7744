"""The single-turn function calls of the Berkeley leaderboard (BFCL) as a text environment."""

from environments.bfcl_single_turn.env import BfclSingleTurn

__all__ = ["BfclSingleTurn"]
