"""2048 as a text environment."""

from environments.game2048.env import Game2048

__all__ = ["Game2048"]
