"""Games of TextArena that one player can play."""

from environments.adapters.textarena.env import TextArena

__all__ = ["TextArena"]
